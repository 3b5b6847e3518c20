// Keeps the list up to date: asks for the page again and takes its main part over where it changed.
"use strict";
let tag = "";
async function refresh() {
  if (document.visibilityState !== "visible") return;
  const answer = await fetch(location.href, { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" });
  if (answer.status !== 200) return;
  tag = answer.headers.get("ETag") || "";
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const id of ["counts", "messages"]) {
    const now = document.getElementById(id), next = fresh.getElementById(id);
    if (now && next && now.innerHTML !== next.innerHTML) now.replaceWith(document.adoptNode(next));
  }
}
async function loop() {
  try { await refresh(); } catch (_) { /* the sandbox is away; the next round tries again */ }
  setTimeout(loop, 1000);
}
if (document.getElementById("messages")) loop();
