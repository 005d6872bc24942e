"use strict";
// The map: zoom, pan, pinch, selection of one image or an area. Without this script, a still map stands in its place.
(() => {
  const root = document.getElementById("explorer"), source = document.getElementById("explorer-data");
  if (!root || !source) return;
  const data = JSON.parse(source.textContent);

  function numbers(text, Type) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return new Type(bytes.buffer);
  }
  const xy = numbers(data.xy, Uint16Array), group = numbers(data.group, Uint16Array), count = data.names.length;
  const near = data.near.map((space) => ({ ...space, rows: numbers(space.rows, Uint16Array) }));
  const cosine = data.cosine && numbers(data.cosine, Uint16Array);
  const labels = data.labels && numbers(data.labels, Uint16Array), predicted = data.predicted && numbers(data.predicted, Uint16Array);
  const confidence = data.confidence && numbers(data.confidence, Uint8Array);
  const density = data.density && numbers(data.density, Uint8Array);
  const shapes = data.shapes.map((path) => new Path2D(path));
  const px = (i) => xy[2 * i] / 10, py = (i) => xy[2 * i + 1] / 10;

  const plane = root.querySelector(".plane"), still = plane.querySelector(".still"), panel = root.querySelector(".panel");
  const tools = root.querySelector(".tools"), chosen = root.querySelector(".chosen"), select = tools.querySelector("select");
  const withPictures = tools.querySelector("input[type=checkbox]");
  const canvas = document.createElement("canvas"), frame = document.createElement("div"), tip = document.createElement("div");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", `${still.getAttribute("aria-label")}. Arrow keys choose an image, plus and minus zoom, Enter shows its neighbours.`);
  frame.className = "brush";
  tip.className = "tip";
  frame.hidden = tip.hidden = true;
  plane.append(canvas, frame, tip);
  plane.classList.add("live");
  tools.hidden = panel.hidden = false;
  for (const text of root.querySelectorAll(".scripted")) text.hidden = false;

  const sheet = new Image();
  const address = document.getElementById("sheet").getAttribute("href");
  sheet.addEventListener("load", () => { ready = true; draw(); });
  let ready = false;
  sheet.src = address;
  const style = document.createElement("style");  // one rule: an address of megabytes for every element would be slow
  style.textContent = `.from-sheet { background-image: url(${address}); }`;
  document.head.append(style);

  // What is seen: a place p of the map is drawn at zoom * p + (left, top), in units of the map; `unit` pixels each.
  let zoom = 1, left = 0, top = 0, unit = 1, picked = -1, mode = "move", shown = new Array(count).fill(true), waiting = false;
  const LARGEST = 60, PICTURE = 27;
  let layout = { key: "", pictures: [] };

  function side() { return Math.min(PICTURE * Math.sqrt(zoom), 110); }

  // The images that get a picture at this zoom: in order, each where no earlier one is. It does not change while panning.
  function pictures() {
    const key = `${zoom} ${shown.length} ${filter.size}`;
    if (layout.key === key) return layout.pictures;
    const size = (side() + 3) / zoom, cells = new Map(), free = [];
    for (let i = 0; i < count; i++) {
      if (!shown[i]) continue;
      const x = px(i), y = py(i), cx = Math.floor(x / size), cy = Math.floor(y / size);
      let taken = false;
      for (let dx = -1; dx <= 1 && !taken; dx++) {
        for (let dy = -1; dy <= 1 && !taken; dy++) {
          const other = cells.get((cx + dx) * 4096 + cy + dy);
          taken = other !== undefined && Math.abs(px(other) - x) < size && Math.abs(py(other) - y) < size;
        }
      }
      if (taken) continue;
      cells.set(cx * 4096 + cy, i);
      free.push(i);
    }
    layout = { key, pictures: free };
    return free;
  }

  let palette = {};
  function readPalette() {
    const css = getComputedStyle(root);
    palette = { none: css.getPropertyValue("--soft").trim(), good: css.getPropertyValue("--good").trim(), bad: css.getPropertyValue("--bad").trim(),
      ink: css.getPropertyValue("--ink").trim(), paper: css.getPropertyValue("--paper").trim(), accent: css.getPropertyValue("--accent").trim() };
    for (let i = 0; i < data.colours; i++) palette[i] = css.getPropertyValue(`--c${i}`).trim();
  }
  function colour(i) {
    if (select.value === "error" && predicted) return labels[i] === predicted[i] ? palette.good : palette.bad;
    if (select.value === "density" && density) return `color-mix(in srgb, ${palette.accent} ${Math.round(density[i] / 2.55)}%, ${palette.bad})`;
    return group[i] ? palette[(group[i] - 1) % data.colours] : palette.none;
  }
  function shape(i) {
    if (select.value === "error" && predicted) return shapes[labels[i] === predicted[i] ? 0 : 3];
    return shapes[select.value === "group" && group[i] ? Math.floor((group[i] - 1) / data.colours) % shapes.length : 0];
  }
  const at = (i) => [zoom * px(i) + left, zoom * py(i) + top];
  const visible = (x, y, margin) => x > -margin && y > -margin && x < data.width + margin && y < data.height + margin;

  function draw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; paint(); });
  }
  function paint() {
    const context = canvas.getContext("2d"), ratio = canvas.width / data.width, size = side();
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, data.width, data.height);
    const drawn = new Set(withPictures.checked && ready ? pictures() : []);
    for (let i = 0; i < count; i++) {
      const [x, y] = at(i);
      if (!shown[i] || drawn.has(i) || !visible(x, y, 6)) continue;
      context.setTransform(ratio, 0, 0, ratio, ratio * x, ratio * y);
      context.fillStyle = colour(i);
      context.fill(shape(i));
    }
    context.imageSmoothingEnabled = !data.pixelated;
    context.imageSmoothingQuality = "high";
    for (const i of drawn) {
      const [x, y] = at(i);
      if (!visible(x, y, size)) continue;
      picture(context, ratio, i, x, y, size);
    }
    if (picked >= 0) {
      const [x, y] = at(picked), big = Math.max(size, 30);
      if (ready) picture(context, ratio, picked, x, y, big);
      context.setTransform(ratio, 0, 0, ratio, ratio * x, ratio * y);
      context.strokeStyle = palette.ink;
      context.lineWidth = 3;
      context.strokeRect(-big / 2 - 2, -big / 2 - 2, big + 4, big + 4);
    }
    root.dataset.zoom = zoom.toFixed(2);
    root.dataset.pictures = drawn.size;
  }
  function picture(context, ratio, i, x, y, size) {
    context.setTransform(ratio, 0, 0, ratio, ratio * x, ratio * y);
    context.drawImage(sheet, (i % data.across) * data.tile, Math.floor(i / data.across) * data.tile, data.tile, data.tile, -size / 2, -size / 2, size, size);
    context.strokeStyle = colour(i);
    context.lineWidth = 2;
    context.strokeRect(-size / 2, -size / 2, size, size);
    if (select.value === "density") return;
    context.translate(-size / 2 + 1, -size / 2 + 1);  // ten colours repeat; the shape tells their classes apart
    context.fillStyle = palette.paper;
    context.beginPath();
    context.arc(0, 0, 6.5, 0, 7);
    context.fill();
    context.fillStyle = colour(i);
    context.fill(shape(i));
  }

  function fit() {
    const box = plane.getBoundingClientRect();
    unit = box.width / data.width;
    canvas.width = Math.round(box.width * Math.min(window.devicePixelRatio || 1, 2));
    canvas.height = Math.round(canvas.width * data.height / data.width);
    draw();
  }
  function place(event) {  // of a pointer, in units of the map
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / unit, (event.clientY - box.top) / unit];
  }
  function keepInside() {
    left = Math.min(0, Math.max(data.width * (1 - zoom), left));
    top = Math.min(0, Math.max(data.height * (1 - zoom), top));
  }
  function zoomAt(factor, x, y) {
    const next = Math.min(LARGEST, Math.max(1, zoom * factor));
    left = x - (x - left) * next / zoom;
    top = y - (y - top) * next / zoom;
    zoom = next;
    keepInside();
    draw();
  }
  function nearestTo(x, y, reach) {  // a picture above marks, else the nearest mark
    const size = side();
    let best = -1, distance = reach;
    if (withPictures.checked) {
      for (const i of pictures()) {
        const [cx, cy] = at(i);
        if (Math.abs(cx - x) <= size / 2 && Math.abs(cy - y) <= size / 2) best = i;
      }
      if (best >= 0) return best;
    }
    for (let i = 0; i < count; i++) {
      if (!shown[i]) continue;
      const [cx, cy] = at(i), d = Math.hypot(cx - x, cy - y);
      if (d < distance) { best = i; distance = d; }
    }
    return best;
  }

  // ---- one image and its neighbours
  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }
  function tile(i, pixels) {
    const large = document.getElementById(`large-${i}`);
    const cut = element("span", { class: `tile from-sheet${data.pixelated ? " px" : ""}`, role: "img", "aria-label": data.names[i] });
    cut.style.width = cut.style.height = `${pixels}px`;
    if (large) {
      cut.style.backgroundImage = `url(${large.getAttribute("href")})`;
      cut.style.backgroundSize = "100% 100%";
    } else {
      cut.style.backgroundSize = `${data.across * pixels}px auto`;
      cut.style.backgroundPosition = `${-(i % data.across) * pixels}px ${-Math.floor(i / data.across) * pixels}px`;
    }
    return cut;
  }
  function describe(i) {
    const lines = [data.names[i]];
    if (group[i]) lines.unshift(data.groups[group[i] - 1]);
    if (predicted && labels[i]) {
      const right = labels[i] === predicted[i];
      lines.push(`predicted ${data.classes[predicted[i] - 1] ?? "another class"} (${(confidence[i] / 255).toFixed(2)}): ${right ? "right" : "wrong"}`);
    }
    return lines;
  }
  function pick(i, focus = false) {
    picked = i;
    draw();
    panel.replaceChildren();
    if (i < 0) { panel.append(element("p", { class: "how" }, "Choose an image on the map to see its neighbours.")); return; }
    const [first, ...rest] = describe(i);
    const text = element("div", {}, element("b", {}, first), ...rest.map((line) => element("small", {}, line)));
    panel.append(element("div", { class: "subject" }, tile(i, 96), text));
    for (const space of near) {
      const row = element("div", { class: "row" });
      for (let j = 0; j < space.k; j++) {
        const other = space.rows[i * space.k + j];
        const same = group[i] && group[other] && data.labelled ? group[i] === group[other] : null;
        const note = cosine && space === near[0] ? `, cosine ${(cosine[i * space.k + j] / 65535).toFixed(3)}` : "";
        const label = `${space.name} neighbour ${j + 1}: ${describe(other)[0]}${note}`;
        const button = element("button", { type: "button", "aria-label": label, title: label, class: same === null ? "" : same ? "same" : "other" }, tile(other, 54));
        button.addEventListener("click", () => { pick(other, true); bring(other); });
        row.append(button);
      }
      panel.append(element("h3", {}, space.name), row);
    }
    if (focus) panel.focus({ preventScroll: true });
  }
  function bring(i) {  // into what is seen of the map
    const [x, y] = at(i);
    if (visible(x, y, -10)) return;
    left += data.width / 2 - x;
    top += data.height / 2 - y;
    keepInside();
    draw();
  }
  function step(dx, dy) {  // from the picked image to the nearest one in a direction
    if (picked < 0) { pick(nearestTo(data.width / 2, data.height / 2, Infinity)); return; }
    const x = px(picked), y = py(picked);
    let best = -1, cost = Infinity;
    for (let i = 0; i < count; i++) {
      const along = (px(i) - x) * dx + (py(i) - y) * dy, across = Math.abs((px(i) - x) * dy) + Math.abs((py(i) - y) * dx);
      if (i === picked || !shown[i] || along <= 0 || across > along) continue;
      if (along + 2 * across < cost) { cost = along + 2 * across; best = i; }
    }
    if (best >= 0) { pick(best); bring(best); }
  }

  // ---- an area
  function choose(rows) {
    chosen.replaceChildren();
    chosen.hidden = !rows.length;
    if (!rows.length) return;
    const names = element("textarea", { readonly: "", rows: "4", "aria-label": "Names of the selected images" });
    names.value = rows.map((i) => data.names[i]).join("\n");
    const copy = element("button", { type: "button" }, "Copy names"), close = element("button", { type: "button" }, "Close");
    copy.addEventListener("click", () => {
      names.select();
      if (navigator.clipboard) navigator.clipboard.writeText(names.value).catch(() => document.execCommand("copy"));
      else document.execCommand("copy");
      copy.textContent = "Copied";
    });
    close.addEventListener("click", () => choose([]));
    const grid = element("div", { class: "grid" });
    for (const i of rows.slice(0, 240)) {
      const button = element("button", { type: "button", title: describe(i).join(", "), "aria-label": describe(i).join(", ") }, tile(i, 64));
      button.addEventListener("click", () => pick(i));
      grid.append(button);
    }
    const more = rows.length > 240 ? ` The first 240 are shown; the list of names has all.` : "";
    chosen.append(element("p", {}, element("b", {}, `${rows.length.toLocaleString("en")} image${rows.length === 1 ? "" : "s"} selected.`), more, " ", copy, " ", close), grid, names);
  }

  // ---- filter
  const filter = new Set();
  for (const entry of root.querySelectorAll(".legend [data-group]")) {
    const button = element("button", { type: "button", "aria-pressed": "false", "data-group": entry.dataset.group });
    button.append(...entry.childNodes);
    entry.replaceWith(button);
    button.addEventListener("click", () => {
      const own = Number(button.dataset.group);
      if (!filter.delete(own)) filter.add(own);
      button.setAttribute("aria-pressed", filter.has(own));
      shown = Array.from({ length: count }, (_, i) => !filter.size || filter.has(group[i] - 1));
      layout.key = "";
      root.dataset.shown = shown.filter(Boolean).length;
      draw();
    });
  }

  // ---- pointers
  const fingers = new Map();
  let start = null, moved = false, spread = 0;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, place(event));
    moved = fingers.size > 1;
    start = { place: place(event), brush: mode === "select" || event.shiftKey };
    spread = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const here = place(event), before = fingers.get(event.pointerId);
    if (!before) { hover(event, here); return; }
    tip.hidden = true;
    fingers.set(event.pointerId, here);
    if (fingers.size === 2) {
      const [a, b] = [...fingers.values()], distance = Math.hypot(a[0] - b[0], a[1] - b[1]);
      if (spread) zoomAt(distance / spread, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
      spread = distance;
      moved = true;
      return;
    }
    if (Math.hypot(here[0] - start.place[0], here[1] - start.place[1]) * unit > 5) moved = true;
    if (!moved) return;
    if (start.brush) {
      const [x, y] = start.place;
      frame.hidden = false;
      Object.assign(frame.style, { left: `${unit * Math.min(x, here[0])}px`, top: `${unit * Math.min(y, here[1])}px`,
        width: `${unit * Math.abs(x - here[0])}px`, height: `${unit * Math.abs(y - here[1])}px` });
    } else {
      left += here[0] - before[0];
      top += here[1] - before[1];
      keepInside();
      draw();
    }
  });
  function release(event) {
    const here = place(event), was = fingers.delete(event.pointerId);
    spread = 0;
    if (!was || fingers.size) return;
    if (event.type === "pointerup" && !moved) pick(nearestTo(...here, 24 / unit));
    if (event.type === "pointerup" && moved && start.brush && !frame.hidden) {
      const [x, y] = start.place, inside = [];
      for (let i = 0; i < count; i++) {
        const [cx, cy] = at(i);
        if (shown[i] && cx >= Math.min(x, here[0]) && cx <= Math.max(x, here[0]) && cy >= Math.min(y, here[1]) && cy <= Math.max(y, here[1])) inside.push(i);
      }
      choose(inside);
    }
    frame.hidden = true;
  }
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  function hover(event, here) {
    const i = event.pointerType === "mouse" ? nearestTo(...here, 10 / unit) : -1;
    tip.hidden = i < 0;
    if (i < 0) return;
    tip.replaceChildren(tile(i, 96), ...describe(i).map((line) => element("div", {}, line)));
    const x = here[0] * unit, y = here[1] * unit, box = canvas.getBoundingClientRect();
    tip.style.left = `${Math.min(Math.max(x, 70), Math.max(70, box.width - 70))}px`;
    tip.style.top = `${y - (box.top + y > window.innerHeight - 190 ? 190 : 0)}px`;
  }
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("wheel", (event) => {
    if (zoom === 1 && event.deltaY > 0) return;  // the page scrolls on
    event.preventDefault();
    zoomAt(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), ...place(event));
  }, { passive: false });
  canvas.addEventListener("dblclick", (event) => zoomAt(2, ...place(event)));
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }, move = moves[event.key];
    const [x, y] = picked >= 0 ? at(picked) : [data.width / 2, data.height / 2];
    if (move) step(...move);
    else if (event.key === "+" || event.key === "=") zoomAt(1.5, x, y);
    else if (event.key === "-") zoomAt(1 / 1.5, x, y);
    else if (event.key === "0") reset();
    else if (event.key === "Escape") pick(-1);
    else if (event.key === "Enter" || event.key === " ") { if (picked < 0) step(0, 0); pick(picked, true); }
    else return;
    event.preventDefault();
  });

  // ---- tools
  function reset() { zoom = 1; left = top = 0; draw(); }
  const actions = { in: () => zoomAt(1.6, data.width / 2, data.height / 2), out: () => zoomAt(1 / 1.6, data.width / 2, data.height / 2), reset };
  for (const button of tools.querySelectorAll("[data-do]")) button.addEventListener("click", actions[button.dataset.do]);
  for (const button of tools.querySelectorAll("[data-mode]")) {
    button.addEventListener("click", () => {
      mode = button.dataset.mode;
      for (const other of tools.querySelectorAll("[data-mode]")) other.setAttribute("aria-pressed", other === button);
      canvas.classList.toggle("selecting", mode === "select");
    });
  }
  select.addEventListener("change", draw);
  withPictures.addEventListener("change", draw);

  // Pictures elsewhere on the page show themselves on the map.
  for (const cut of document.querySelectorAll(".cut[data-row]")) {
    cut.addEventListener("click", () => {
      pick(Number(cut.dataset.row));
      bring(picked);
      root.scrollIntoView({ behavior: "smooth", block: "start" });
    });
  }

  readPalette();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readPalette(); draw(); });
  new ResizeObserver(fit).observe(plane);
  pick(-1);
  fit();
})();
