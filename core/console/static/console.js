// Keeps a page up to date: asks for it again and takes its parts marked data-live over where they
// changed. What is being read (a selection) or is open (details) is left alone.
"use strict";
const stale = document.getElementById("stale");

async function refresh() {
  const answer = await fetch(location.href, { cache: "no-store", redirect: "manual" });
  if (answer.type === "opaqueredirect") return location.reload(); // logged out
  if (answer.status !== 200) throw new Error("status " + answer.status);
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  const selection = document.getSelection();
  for (const now of document.querySelectorAll("[data-live]")) {
    const next = fresh.getElementById(now.id);
    if (!next || now.innerHTML === next.innerHTML || now.querySelector("details[open]")) continue;
    if (!selection.isCollapsed && selection.containsNode(now, true)) continue;
    const focused = now.contains(document.activeElement) ? document.activeElement.id : "";
    now.replaceWith(document.adoptNode(next));
    if (focused) document.getElementById(focused)?.focus();
  }
}

async function loop() {
  if (document.visibilityState === "visible") {
    try {
      await refresh();
      stale.hidden = true;
    } catch {
      stale.hidden = false; // away, or failing; the next round tries again
    }
  }
  setTimeout(loop, 2000);
}
setTimeout(loop, 2000);
