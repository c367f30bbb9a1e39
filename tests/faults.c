/* Strikes the n-th operation on files below a folder: kills the process there, or fails. Loaded with LD_PRELOAD.

   It stands between every library of a process and libc: Python, PyTorch, Rust (safetensors), Pillow's C code. What it
   cannot see is stdio's own writing (fwrite), which libc does inside; opening the file for it, it does see. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, KILL, FAIL, FULL, SHORT };  /* FULL: what needs room fails from there on; SHORT: half is written, no error */
enum { READ = 1, CHANGE = 2, GROW = 4 }; /* operations: GROW are the changes that need room on the disk */

static char root[PATH_MAX]; /* ends with a slash */
static atomic_long seen;
static long at; /* the operation that is struck, counted from 1; 0 for none */
static int action, code, counted, trace = -1;

/* Arms it. `classes` are the operations that are counted; each, or with `n` the struck one, is a line in `log`. */
void faults_arm(const char *folder, int log, int classes, long n, int what, int error) {
    strncpy(root, folder, sizeof root - 1);
    atomic_store(&seen, 0);
    trace = log, counted = classes, at = n, code = error, action = what;
}

/* The path of what is opened relative to `folder`, or with no name of `folder` itself, as it is in /proc. */
static int whole(int folder, const char *name, char *path) {
    char link[64];
    if (name && name[0] == '/') return snprintf(path, PATH_MAX, "%s", name) < PATH_MAX;
    snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    if (size < 0) return 0;
    path[size] = 0;
    if (name) snprintf(path + size, PATH_MAX - size, "/%s", name);
    return 1;
}

/* Whether this operation fails, with errno set; 2 if half of it is to be done. Does not return where it kills. */
static int struck(const char *operation, int class, int folder, const char *name, size_t size) {
    char path[PATH_MAX];
    int saved = errno;
    if (trace < 0 || !(class & counted) || !whole(folder, name, path) || strncmp(path, root, strlen(root))) {
        errno = saved;
        return 0;
    }
    long n = atomic_fetch_add(&seen, 1) + 1;
    int hit = at && (action == FULL ? n >= at && class & GROW : n == at);
    if (!at || hit) dprintf(trace, "%s %zu %s\n", operation, size, path);
    if (hit && action == KILL) kill(getpid(), SIGKILL), pause();
    errno = hit ? code : saved;
    if (hit && size > 1 && (action == SHORT || (action == FULL && n == at))) return 2; /* a disk fills up in a write */
    return hit && action != SHORT;
}

#define NEXT(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))
#define OPENED(flags) ((flags) & (O_CREAT | O_TRUNC) ? GROW | CHANGE : (flags) & (O_WRONLY | O_RDWR) ? CHANGE : READ)
#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        MODE(flags) \
        return struck("open", OPENED(flags), AT_FDCWD, path, 0) ? -1 : NEXT(name)(path, flags, mode); \
    }
#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        MODE(flags) \
        return struck("open", OPENED(flags), folder, path, 0) ? -1 : NEXT(name)(folder, path, flags, mode); \
    }
#define FOPEN(name) \
    FILE *name(const char *path, const char *mode) { \
        int class = strpbrk(mode, "wa") ? GROW | CHANGE : strchr(mode, '+') ? CHANGE : READ; \
        return struck("open", class, AT_FDCWD, path, 0) ? NULL : NEXT(name)(path, mode); \
    }
#define CREAT(name) \
    int name(const char *path, mode_t mode) { \
        return struck("open", GROW | CHANGE, AT_FDCWD, path, 0) ? -1 : NEXT(name)(path, mode); \
    }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64) FOPEN(fopen) FOPEN(fopen64) CREAT(creat) CREAT(creat64)

/* An operation of one line: what it is called, its class, where it is, its arguments with and without types. */
#define ONE(type, name, said, class, folder, path, typed, ...) \
    type name typed { return struck(said, class, folder, path, 0) ? -1 : NEXT(name)(__VA_ARGS__); }
/* One that moves bytes, of which half may be moved. */
#define MOVE(name, said, class, file, typed, half, ...) \
    ssize_t name typed { \
        int how = struck(said, class, file, NULL, size); \
        if (how == 1) return -1; \
        if (how == 2) size = half; \
        return NEXT(name)(__VA_ARGS__); \
    }

MOVE(read, "read", READ, f, (int f, void *d, size_t size), size / 2, f, d, size)
MOVE(pread, "read", READ, f, (int f, void *d, size_t size, off_t o), size / 2, f, d, size, o)
MOVE(pread64, "read", READ, f, (int f, void *d, size_t size, off64_t o), size / 2, f, d, size, o)
MOVE(write, "write", GROW | CHANGE, f, (int f, const void *d, size_t size), size / 2, f, d, size)
MOVE(pwrite, "write", GROW | CHANGE, f, (int f, const void *d, size_t size, off_t o), size / 2, f, d, size, o)
MOVE(pwrite64, "write", GROW | CHANGE, f, (int f, const void *d, size_t size, off64_t o), size / 2, f, d, size, o)
ssize_t sendfile(int to, int from, off_t *o, size_t size);
MOVE(sendfile, "write", GROW | CHANGE, to, (int to, int from, off_t *o, size_t size), size / 2, to, from, o, size)
MOVE(copy_file_range, "write", GROW | CHANGE, to,
     (int from, off64_t *p, int to, off64_t *q, size_t size, unsigned how_), size / 2, from, p, to, q, size, how_)
ssize_t writev(int f, const struct iovec *v, int n) {
    size_t size = 0;
    for (int i = 0; i < n; i++) size += v[i].iov_len;
    int how = struck("write", GROW | CHANGE, f, NULL, size);
    if (how == 2) return NEXT(write)(f, v[0].iov_base, v[0].iov_len / 2);
    return how ? -1 : NEXT(writev)(f, v, n);
}

ONE(int, fsync, "fsync", CHANGE, f, NULL, (int f), f)
ONE(int, fdatasync, "fsync", CHANGE, f, NULL, (int f), f)
ONE(int, ftruncate, "truncate", GROW | CHANGE, f, NULL, (int f, off_t n), f, n)
ONE(int, ftruncate64, "truncate", GROW | CHANGE, f, NULL, (int f, off64_t n), f, n)
ONE(int, truncate, "truncate", GROW | CHANGE, AT_FDCWD, p, (const char *p, off_t n), p, n)
ONE(int, truncate64, "truncate", GROW | CHANGE, AT_FDCWD, p, (const char *p, off64_t n), p, n)
ONE(int, rename, "rename", CHANGE, AT_FDCWD, b, (const char *a, const char *b), a, b)
ONE(int, renameat, "rename", CHANGE, t, b, (int f, const char *a, int t, const char *b), f, a, t, b)
ONE(int, renameat2, "rename", CHANGE, t, b, (int f, const char *a, int t, const char *b, unsigned h), f, a, t, b, h)
ONE(int, link, "link", GROW | CHANGE, AT_FDCWD, b, (const char *a, const char *b), a, b)
ONE(int, symlink, "link", GROW | CHANGE, AT_FDCWD, b, (const char *a, const char *b), a, b)
ONE(int, unlink, "remove", CHANGE, AT_FDCWD, p, (const char *p), p)
ONE(int, unlinkat, "remove", CHANGE, f, p, (int f, const char *p, int h), f, p, h)
ONE(int, remove, "remove", CHANGE, AT_FDCWD, p, (const char *p), p)
ONE(int, rmdir, "remove", CHANGE, AT_FDCWD, p, (const char *p), p)
ONE(int, mkdir, "mkdir", GROW | CHANGE, AT_FDCWD, p, (const char *p, mode_t m), p, m)
ONE(int, mkdirat, "mkdir", GROW | CHANGE, f, p, (int f, const char *p, mode_t m), f, p, m)
