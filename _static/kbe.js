// Sliders over pictures (kbe_view.slider): shows the frame that belongs to the handle's position.
document.addEventListener("input", ({ target }) => {
  const slider = target.closest(".kbe-slider");
  if (!slider) return;
  const word = target.dataset.words.split("|")[target.value];
  slider.querySelectorAll("img").forEach((frame, position) => (frame.hidden = position !== Number(target.value)));
  slider.querySelector("output").value = word;
  target.setAttribute("aria-valuetext", word);
});

// Code, tables and formulas that are wider than the page scroll by themselves, and can be reached with the tab key to do so.
const regions = { "pst-scrollable-table-container": "wide table", cell_output: "wide output", math: "wide formula" };
function nameWideRegions() {
  for (const code of document.querySelectorAll(".bd-article pre")) {
    if (code.scrollWidth > code.clientWidth) code.tabIndex = 0;
  }
  for (const [name, words] of Object.entries(regions)) {
    for (const box of document.querySelectorAll(`.bd-article div.${name}`)) {
      if (box.scrollWidth <= box.clientWidth) continue;
      box.tabIndex = 0;
      box.setAttribute("role", "region");
      box.setAttribute("aria-label", words);
    }
  }
}
window.addEventListener("load", () => {
  (window.MathJax?.startup?.promise ?? Promise.resolve()).then(nameWideRegions);
  window.addEventListener("resize", nameWideRegions);
  document.addEventListener("toggle", nameWideRegions, true); // a hidden cell is opened
});
