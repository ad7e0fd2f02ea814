// Sliders over pictures (kbe_view.slider): shows the frame that belongs to the handle's position.
document.addEventListener("input", ({ target }) => {
  const slider = target.closest(".kbe-slider");
  if (!slider) return;
  const word = target.dataset.words.split("|")[target.value];
  slider.querySelectorAll("img").forEach((frame, position) => (frame.hidden = position !== Number(target.value)));
  slider.querySelector("output").value = word;
  target.setAttribute("aria-valuetext", word);
});
