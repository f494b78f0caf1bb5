// Zoom and search. A frame knows its samples from `data-at` on, `data-samples` of them.
(() => {
  "use strict";
  const svg = document.currentScript.ownerSVGElement;
  const one = (selector) => svg.querySelector(selector);
  const frames = [...one(".graph").children].map((element) => ({
    element,
    label: element.querySelector("text"),
    full: element.querySelector("title").textContent.split("\n")[0].toLowerCase(),
    short: element.dataset.name,
    at: Number(element.dataset.at),
    samples: Number(element.dataset.samples),
    y: Number(element.getAttribute("y")),
  }));
  const all = frames[0];
  let zoomed = all;

  // As wide as the window, from now on.
  svg.classList.add("live");
  svg.removeAttribute("viewBox");
  svg.setAttribute("width", "100%");

  const html = (name, attributes) => Object.assign(document.createElementNS("http://www.w3.org/1999/xhtml", name), attributes);
  const corner = document.createElementNS("http://www.w3.org/2000/svg", "foreignObject");
  const tools = html("div", { className: "tools" });
  const reset = html("button", { type: "button", textContent: "reset", hidden: true });
  const search = html("input", { type: "search", placeholder: "search (Ctrl-F)", ariaLabel: "search" });
  tools.append(reset, search);
  corner.append(tools);
  for (const [name, value] of Object.entries({ x: "99%", y: 10, width: 260, height: 34, transform: "translate(-260 0)" })) {
    corner.setAttribute(name, value);
  }
  svg.append(corner);

  const draw = () => {
    const pixels = 0.98 * svg.getBoundingClientRect().width;
    all.label.textContent = all.short;
    const letter = all.label.getComputedTextLength() / all.short.length || 7.3;
    const samples = Math.max(1, zoomed.samples);
    const end = zoomed.at + zoomed.samples;
    for (const frame of frames) {
      const { element, label, short } = frame;
      const above = frame.y <= zoomed.y && frame.at >= zoomed.at && frame.at + frame.samples <= end;
      const below = frame.y > zoomed.y && frame.at <= zoomed.at && frame.at + frame.samples >= end;
      element.classList.toggle("gone", !above && !below);
      element.classList.toggle("below", below);
      const left = below ? 0 : (frame.at - zoomed.at) / samples;
      const width = below || frame === zoomed ? 1 : frame.samples / samples;
      element.setAttribute("x", `${100 * left}%`);
      element.setAttribute("width", `${100 * width}%`);
      const room = Math.max(0, Math.floor((width * pixels - 6) / letter));
      const letters = [...short];
      label.textContent = letters.length <= room ? short : room < 3 ? "" : letters.slice(0, room - 1).join("") + "\u2026";
    }
    reset.hidden = zoomed === all;
  };
  const zoom = (frame) => { zoomed = frame; draw(); };

  const find = () => {
    const wanted = search.value.trim().toLowerCase();
    // Frames come before those that stand on them: a sample counts once.
    let [found, counted] = [0, 0];
    for (const frame of frames) {
      const matches = wanted !== "" && frame !== all && frame.full.includes(wanted);
      frame.element.classList.toggle("found", matches);
      if (matches && frame.at >= counted) {
        found += frame.samples;
        counted = frame.at + frame.samples;
      }
    }
    const share = (100 * found / Math.max(1, all.samples)).toFixed(1);
    one(".told").textContent = wanted === "" ? "" : `found: ${share}\u00a0% of all samples`;
  };

  for (const frame of frames) frame.element.addEventListener("click", () => zoom(frame));
  for (const key of svg.querySelectorAll(".key")) {
    key.addEventListener("click", () => {
      search.value = search.value === key.dataset.name ? "" : key.dataset.name;
      find();
    });
  }
  reset.addEventListener("click", () => zoom(all));
  search.addEventListener("input", find);
  addEventListener("resize", draw);
  addEventListener("keydown", (event) => {
    // Once more, and it is the browser's own.
    if ((event.ctrlKey || event.metaKey) && event.key === "f" && document.activeElement !== search) {
      event.preventDefault();
      search.select();
    } else if (event.key === "Escape") {
      search.value = "";
      find();
      zoom(all);
    }
  });
  draw();
})();
