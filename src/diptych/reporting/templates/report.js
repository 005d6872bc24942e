"use strict";
// Optional: the page has the same content without it. Adds values on curves and enlarged pictures.
(() => {
  const SVG = document.documentElement.querySelector("svg").namespaceURI;
  const hover = JSON.parse(document.getElementById("hover").textContent);

  function add(parent, tag, attributes) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    parent.append(element);
  }

  // Curves: the values of the point nearest to the pointer (or chosen with the arrow keys) replace those in the title.
  for (const figure of document.querySelectorAll("[data-chart]")) {
    const lines = hover[figure.dataset.chart];
    if (!lines) continue;
    const svg = figure.querySelector("svg"), cursor = svg.querySelector(".cursor"), output = figure.querySelector("output");
    const last = output.textContent, places = lines[0].map((point) => point[0]);
    let at = places.length - 1;
    const nearest = (line, x) => line.reduce((best, point) => Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best);

    function show(x) {
      const points = lines.map((line) => nearest(line, x));
      cursor.replaceChildren();
      add(cursor, "path", { d: `M${points[0][0]} 12V166` });
      for (const [px, py] of points) add(cursor, "circle", { cx: px, cy: py, r: 3.5 });
      output.textContent = `step ${points[0][2].toLocaleString("en")}: ${points.map((point) => point[3]).join(", ")}`;
    }
    function clear() { cursor.replaceChildren(); output.textContent = last; }

    svg.setAttribute("tabindex", "0");
    for (const kind of ["pointermove", "pointerdown"]) {  // a finger that taps does not move
      svg.addEventListener(kind, (event) => {
        const box = svg.getBoundingClientRect();
        show((event.clientX - box.left) / box.width * 340);
      });
    }
    svg.addEventListener("pointerleave", clear);
    svg.addEventListener("blur", clear);
    svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!move) return;
      event.preventDefault();
      at = Math.min(Math.max(at + move, 0), places.length - 1);
      show(places[at]);
    });
  }

  // A run that still trains: its page is written again and again.
  if (document.body.dataset.reload) setTimeout(() => location.reload(), 1000 * Number(document.body.dataset.reload));

  // Pictures: click or Enter enlarges.
  const big = document.getElementById("big");
  function enlarge(picture) {
    const shown = big.querySelector("img");
    shown.src = picture.src;
    shown.alt = picture.alt;
    big.querySelector("p").textContent = picture.alt;
    big.showModal();
  }
  big.addEventListener("click", () => big.close());
  for (const picture of document.querySelectorAll("img.zoom")) {
    picture.tabIndex = 0;
    picture.setAttribute("role", "button");
    picture.addEventListener("click", () => enlarge(picture));
    picture.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();  // the space bar would scroll
      enlarge(picture);
    });
  }
})();
