// The tabs lead to the run that the page is about, and not to the newest one.
document.addEventListener("pointerdown", keep, true);
document.addEventListener("keydown", keep, true);
function keep(event) {
  const tab = event.target.closest && event.target.closest("a.tab");
  if (!tab || tab.pathname === "/") return;
  const path = location.pathname.match(/^\/run\/(.+)$/);
  const run = path ? decodeURIComponent(path[1]) : new URLSearchParams(location.search).get("run");
  tab.search = run ? "?" + new URLSearchParams({ run }) : "";
}

// The address of the page has its settings. It is not changed while the browser goes to another page: it would stay.
let leaving = 0;
addEventListener("beforeunload", () => { leaving = Date.now(); });
window.keepAddress = address => { if (Date.now() - leaving > 20000) history.replaceState(null, "", address); };
