/* Fails or kills at the n-th operation that changes files below a folder; loaded with LD_PRELOAD by faults.py. */
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

static char root[PATH_MAX];
static atomic_long seen;
static long at = -1; /* the operation that is struck, from 1; 0 counts alone; -1 is off */
static int code;     /* the errno, or 0 to kill */
static int lasting;  /* whether all that follow fail too, as on a full disk */

void faults_arm(const char *folder, long n, int error, int stays) {
    strncpy(root, folder, sizeof root - 1);
    atomic_store(&seen, 0);
    code = error, lasting = stays, at = n;
}

long faults_seen(void) { return atomic_load(&seen); }

static int below(const char *path) { return strncmp(path, root, strlen(root)) == 0; }

static int inside(int folder, const char *path) {
    char link[64], there[PATH_MAX];
    if (path && path[0] == '/') return below(path);
    if (folder == AT_FDCWD) {
        if (!getcwd(there, sizeof there)) return 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t size = readlink(link, there, sizeof there - 1);
        if (size < 0) return 0;
        there[size] = 0;
    }
    return below(there);
}

/* Whether this operation is to fail, with errno set. */
static int struck(int folder, const char *path) {
    if (at < 0 || !inside(folder, path)) return 0;
    long n = atomic_fetch_add(&seen, 1) + 1;
    if (at == 0 || (lasting ? n < at : n != at)) return 0;
    if (code == 0) kill(getpid(), SIGKILL), pause();
    errno = code;
    return 1;
}

#define NEXT(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))
#define WRITES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))
#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        MODE(flags) \
        return WRITES(flags) && struck(AT_FDCWD, path) ? -1 : NEXT(name)(path, flags, mode); \
    }
#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        MODE(flags) \
        return WRITES(flags) && struck(folder, path) ? -1 : NEXT(name)(folder, path, flags, mode); \
    }
#define FOPEN(name) \
    FILE *name(const char *path, const char *mode) { \
        return strpbrk(mode, "wa+") && struck(AT_FDCWD, path) ? NULL : NEXT(name)(path, mode); \
    }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64) FOPEN(fopen) FOPEN(fopen64)

ssize_t write(int file, const void *data, size_t size) {
    if (struck(file, NULL)) {
        if (code == ENOSPC && size > 1) NEXT(write)(file, data, size / 2); /* a full disk takes a part */
        errno = code;
        return -1;
    }
    return NEXT(write)(file, data, size);
}
ssize_t writev(int f, const struct iovec *v, int n) { return struck(f, NULL) ? -1 : NEXT(writev)(f, v, n); }
ssize_t pwrite(int f, const void *d, size_t n, off_t o) { return struck(f, NULL) ? -1 : NEXT(pwrite)(f, d, n, o); }
ssize_t pwrite64(int f, const void *d, size_t n, off64_t o) { return struck(f, NULL) ? -1 : NEXT(pwrite64)(f, d, n, o); }
ssize_t sendfile(int o, int i, off_t *a, size_t n) {
    return struck(o, NULL) ? -1 : ((ssize_t(*)(int, int, off_t *, size_t))dlsym(RTLD_NEXT, "sendfile"))(o, i, a, n);
}
int fsync(int file) { return struck(file, NULL) ? -1 : NEXT(fsync)(file); }
int fdatasync(int file) { return struck(file, NULL) ? -1 : NEXT(fdatasync)(file); }
int ftruncate(int f, off_t n) { return struck(f, NULL) ? -1 : NEXT(ftruncate)(f, n); }
int ftruncate64(int f, off64_t n) { return struck(f, NULL) ? -1 : NEXT(ftruncate64)(f, n); }
int rename(const char *a, const char *b) { return struck(AT_FDCWD, b) ? -1 : NEXT(rename)(a, b); }
int renameat(int f, const char *a, int t, const char *b) { return struck(t, b) ? -1 : NEXT(renameat)(f, a, t, b); }
int unlink(const char *path) { return struck(AT_FDCWD, path) ? -1 : NEXT(unlink)(path); }
int unlinkat(int f, const char *path, int how) { return struck(f, path) ? -1 : NEXT(unlinkat)(f, path, how); }
int rmdir(const char *path) { return struck(AT_FDCWD, path) ? -1 : NEXT(rmdir)(path); }
int mkdir(const char *path, mode_t mode) { return struck(AT_FDCWD, path) ? -1 : NEXT(mkdir)(path, mode); }
int mkdirat(int f, const char *p, mode_t m) { return struck(f, p) ? -1 : NEXT(mkdirat)(f, p, m); }
