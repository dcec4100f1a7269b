"use strict";
const rounds = document.getElementById("rounds");
if (rounds) {
  const slider = document.getElementById("round");
  const all = JSON.parse(rounds.dataset.rounds);
  const show = () => {
    const chosen = all[slider.value];
    document.getElementById("round-text").textContent = chosen.text;
    slider.setAttribute("aria-valuetext", `round ${chosen.round}`);
    for (const shape of document.querySelectorAll('[id^="weights-round-"]')) {
      const shown = shape.id.startsWith(`weights-round-${chosen.round}-`);
      shape.classList.toggle("shown", shown);
      shape.classList.toggle("hidden", !shown);
    }
  };
  slider.addEventListener("input", show);
  rounds.hidden = false;
  show();
}
const copy = async (code) => {
  try {
    await navigator.clipboard.writeText(code.textContent);
    return true;
  } catch {  // where a page from a file may not: select it, and copy the selection
    getSelection().selectAllChildren(code);
    return document.execCommand("copy");
  }
};
for (const code of document.querySelectorAll("code.command")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy command";
  button.addEventListener("click", async () => {
    button.textContent = (await copy(code)) ? "Copied" : "Selected, press Ctrl+C";
    setTimeout(() => (button.textContent = "Copy command"), 3000);
  });
  (code.closest("pre") || code).after(button);
}
const reload = document.getElementById("reload");
if (reload) {
  const kept = "wenet-reload";
  reload.checked = sessionStorage.getItem(kept) !== "off";
  reload.addEventListener("change", () => sessionStorage.setItem(kept, reload.checked ? "on" : "off"));
  setInterval(() => reload.checked && location.reload(), 1000 * reload.dataset.seconds);
}
