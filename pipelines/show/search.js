"use strict";
(() => {
  const box = document.getElementById("search");
  const shown = document.getElementById("shown");
  const cards = Array.from(document.querySelectorAll(".sample"));
  const texts = cards.map((card) => card.textContent.toLowerCase());
  const filter = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    cards.forEach((card, index) => {
      card.hidden = !words.every((word) => texts[index].includes(word));
      count += card.hidden ? 0 : 1;
    });
    shown.textContent = count + " of " + cards.length + " shown";
  };
  box.parentElement.hidden = false;
  box.value = decodeURIComponent(location.hash.startsWith("#search=") ? location.hash.slice(8) : "");
  box.addEventListener("input", filter);
  filter();
})();
