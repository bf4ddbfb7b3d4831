"use strict";
(() => {
  const page = document.documentElement;
  try { page.dataset.theme = localStorage.getItem("fieldmark-theme") || ""; } catch { /* no storage here */ }

  document.addEventListener("DOMContentLoaded", () => {
    theme();
    document.querySelectorAll(".heat").forEach(heat);
    document.querySelectorAll("table.sortable").forEach(sortable);
    search();
    undim();
  });

  function theme() {
    document.getElementById("theme").addEventListener("click", () => {
      const dark = page.dataset.theme ? page.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      page.dataset.theme = dark ? "light" : "dark";
      try { localStorage.setItem("fieldmark-theme", page.dataset.theme); } catch { /* no storage here */ }
    });
  }

  // The matrix: names and numbers under the pointer, or under a cursor that the arrow keys move.
  function heat(figure) {
    const svg = figure.querySelector("svg"), tip = document.getElementById("tip");
    const { names, totals, cells } = JSON.parse(figure.querySelector("script").textContent);
    const counts = new Map(cells.map(([r, c, n]) => [r * names.length + c, n]));
    const origin = +svg.dataset.origin, cell = +svg.dataset.cell, bands = svg.querySelectorAll(".band");
    let row = 0, column = 0;

    function show(x, y) {
      const n = counts.get(row * names.length + column) || 0;
      tip.textContent = row === column
        ? `${names[row]}\n${n} of ${totals[row]} named right`
        : `${names[row]}\n${n} of ${totals[row]} taken for\n${names[column]}`;
      tip.hidden = false;
      const box = tip.getBoundingClientRect();
      tip.style.left = `${Math.min(x + 14, innerWidth - box.width - 8)}px`;
      tip.style.top = `${y + 18 + box.height > innerHeight ? y - box.height - 12 : y + 18}px`;
      [[0, row], [column, 0]].forEach(([c, r], i) => {
        const across = i === 0;
        const place = {
          x: across ? 0 : origin + c * cell, y: across ? origin + r * cell : 0,
          width: across ? origin + names.length * cell : cell, height: across ? cell : origin + names.length * cell,
        };
        for (const key in place) bands[i].setAttribute(key, place[key]);
        bands[i].removeAttribute("hidden");
      });
      svg.querySelectorAll("[data-i]").forEach((text) => {
        text.classList.toggle("lit", +text.dataset.i === (text.classList.contains("row") ? row : column));
      });
    }
    function hide() {
      tip.hidden = true;
      bands.forEach((band) => band.setAttribute("hidden", "hidden"));
      svg.querySelectorAll(".lit").forEach((text) => text.classList.remove("lit"));
    }
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
      const c = Math.floor(((event.clientX - box.left) * scale - origin) / cell);
      const r = Math.floor(((event.clientY - box.top) * scale - origin) / cell);
      if (r < 0 || c < 0 || r >= names.length || c >= names.length) return hide();
      [row, column] = [r, c];
      show(event.clientX, event.clientY);
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (event.key === "Escape") hide();
      if (!step) return;
      event.preventDefault();
      const inside = (value) => Math.max(0, Math.min(names.length - 1, value));
      [row, column] = [inside(row + step[0]), inside(column + step[1])];
      const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
      show(box.left + (origin + (column + 1) * cell) * scale, box.top + (origin + (row + 1) * cell) * scale);
    });
  }

  // Photos without what dims them where the model did not look.
  function undim() {
    const buttons = [...document.querySelectorAll(".undim")];
    buttons.forEach((button) => button.addEventListener("click", () => {
      const bare = page.classList.toggle("bare");
      buttons.forEach((one) => one.setAttribute("aria-pressed", bare));
    }));
  }

  function sortable(table) {
    const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
    const key = (cell) => (cell.dataset.v === undefined ? cell.textContent.trim() : +cell.dataset.v);
    heads.forEach((head, i) => head.querySelector("button").addEventListener("click", () => {
      const text = body.rows.length > 0 && typeof key(body.rows[0].cells[i]) === "string";
      const falling = head.hasAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : !text;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [key(row.cells[i]), row]);
      rows.sort(([a], [b]) => (text ? a.localeCompare(b, undefined, { numeric: true }) : a - b) * (falling ? -1 : 1));
      body.append(...rows.map(([, row]) => row));
    }));
  }

  function search() {
    const field = document.getElementById("find"), body = document.querySelector("#per-class tbody");
    if (!field) return;
    const found = document.getElementById("found");
    field.addEventListener("input", () => {
      const wanted = field.value.trim().toLowerCase();
      let n = 0;
      for (const row of body.rows) {
        row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
        n += !row.hidden;
      }
      found.textContent = `${n} ${n === 1 ? "class" : "classes"}`;
    });
  }
})();
