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
const reload = document.getElementById("reload");
if (reload) {
  const kept = "wenet-reload";
  reload.checked = sessionStorage.getItem(kept) !== "off";
  reload.addEventListener("change", () => sessionStorage.setItem(kept, reload.checked ? "on" : "off"));
  setInterval(() => reload.checked && location.reload(), 1000 * reload.dataset.seconds);
}
