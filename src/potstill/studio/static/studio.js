// What pages do beyond links and forms: regions that follow a stream of the studio. A page works without it, by reloading.
"use strict";

// [data-stream]: replaced part by part ([data-part]) whenever the studio sends it anew, so that what did not change keeps
// its focus and its selection.
function follow(region) {
  const lost = document.querySelector(".stream-lost");
  const source = new EventSource(region.dataset.stream);
  source.onmessage = (event) => {
    if (lost) lost.hidden = true;
    const made = document.createElement("template");
    made.innerHTML = event.data;
    const parts = new Map([...region.children].map((part) => [part.dataset.part, part]));
    let before = null;
    for (const fresh of [...made.content.children]) {
      const old = parts.get(fresh.dataset.part);
      parts.delete(fresh.dataset.part);
      let kept = old;
      if (!old || old.dataset.made !== fresh.outerHTML) {
        if (!old || old.outerHTML !== fresh.outerHTML) {
          const open = old?.querySelector("details")?.open;
          const text = fresh.outerHTML;
          kept = fresh;
          if (open) kept.querySelector("details").open = true;
          if (old) old.replaceWith(kept);
          kept.dataset.made = text;
        }
      }
      if (before ? before.nextElementSibling !== kept : region.firstElementChild !== kept) {
        before ? before.after(kept) : region.prepend(kept);
      }
      before = kept;
    }
    for (const gone of parts.values()) gone.remove();
  };
  source.onerror = () => { if (lost) lost.hidden = false; };
  addEventListener("pagehide", () => source.close());
}

document.querySelectorAll("[data-stream]").forEach(follow);

// [data-at]: a token of the playground; its distributions are shown in #at.
document.addEventListener("click", async (event) => {
  const token = event.target.closest("[data-at]");
  const at = document.getElementById("at");
  if (!token || !at) return;
  document.querySelectorAll("[data-at][aria-pressed]").forEach((other) => other.removeAttribute("aria-pressed"));
  token.setAttribute("aria-pressed", "true");
  const answer = await fetch(token.dataset.at);
  at.innerHTML = await answer.text();
  htmx.process(at);
});
