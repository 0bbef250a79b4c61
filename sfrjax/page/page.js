"use strict";
(() => {
  const gallery = document.getElementById("gallery");
  if (!gallery) return;
  const tiles = [...gallery.children];
  const controls = document.querySelector(".controls");
  const dialog = document.querySelector("dialog");
  const compare = new Intl.Collator(undefined, { numeric: true }).compare;
  const number = (key, sign) => (a, b) => sign * (a.dataset[key] - b.dataset[key]);
  const text = (key) => (a, b) => compare(a.dataset[key], b.dataset[key]);
  const orders = {
    worst: number("order", 1),
    high: number("score", -1),
    low: number("score", 1),
    overlap: number("overlap", 1),
    name: text("name"),
    label: text("label"),
  };
  let shown = tiles;
  let current = 0;

  function arrange() {
    const sorted = [...tiles].sort((a, b) => orders[controls.elements.sort.value](a, b) || orders.worst(a, b));
    const wanted = ["category", "label", "outcome"].filter((key) => controls.elements[key]?.value);
    shown = sorted.filter((tile) => wanted.every((key) => tile.dataset[key] === controls.elements[key].value));
    gallery.replaceChildren(...shown);
    controls.querySelector("output").textContent = `${shown.length} of ${tiles.length} shown`;
  }

  function zoom(index) {
    current = (index + shown.length) % shown.length;
    const tile = shown[current];
    dialog.querySelector("h2").textContent = tile.querySelector(".name").textContent;
    dialog.querySelector(".facts").replaceChildren(tile.lastElementChild.cloneNode(true));
    const pictures = dialog.querySelector(".pictures");
    const buttons = [...tile.querySelectorAll("button span")].map((span) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(span.cloneNode(true));
      button.querySelector("img").loading = "eager";
      button.setAttribute("aria-pressed", "false");
      return button;
    });
    pictures.classList.remove("single");
    pictures.replaceChildren(...buttons);
    dialog.querySelector(".link").setAttribute("href", tile.dataset.link);
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  }

  controls.hidden = false;
  controls.addEventListener("change", arrange);
  controls.addEventListener("submit", (event) => event.preventDefault());
  gallery.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) zoom(shown.indexOf(button.closest("li")));
  });
  // A picture alone, and back to all of them.
  dialog.querySelector(".pictures").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const single = event.currentTarget.classList.toggle("single");
    button.setAttribute("aria-pressed", String(single));
  });
  dialog.querySelector(".previous").addEventListener("click", () => zoom(current - 1));
  dialog.querySelector(".next").addEventListener("click", () => zoom(current + 1));
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") zoom(current - 1);
    if (event.key === "ArrowRight") zoom(current + 1);
  });
  dialog.addEventListener("close", () => shown[current]?.querySelector("button").focus());
  arrange();
})();
