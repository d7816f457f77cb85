"use strict";
(() => {
  const root = document.documentElement;

  // Dark and light: as the reader's system has it, until they choose.
  const theme = document.getElementById("theme");
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const tell = () => { theme.textContent = dark() ? "Light" : "Dark"; };
  theme.hidden = false;
  tell();
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; tell(); });

  // Tables: a click on a heading sorts by it, another the other way round; what has no number comes last.
  const compare = (a, b) => a.localeCompare(b, "en", { numeric: true });
  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, place) => heading.querySelector("button")?.addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      headings.forEach(other => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows].map(row => {
        const cell = row.cells[place];
        return { row, text: cell.textContent, number: cell.dataset.v === undefined ? null : Number(cell.dataset.v) };
      });
      const numeric = rows.some(one => one.number !== null);
      rows.sort((a, b) => {
        if (!numeric) return (up ? 1 : -1) * compare(a.text, b.text);
        if (a.number === null || b.number === null) return (a.number === null) - (b.number === null);
        return (up ? 1 : -1) * (a.number - b.number);
      });
      table.tBodies[0].append(...rows.map(one => one.row));
    }));
  }

  // Pictures: one that is shown in several places is written where it comes first, and copied from there.
  const first = new Map();
  for (const image of document.querySelectorAll("img[data-picture]")) {
    const number = image.dataset.picture;
    if (image.hasAttribute("src")) first.set(number, image.src);
    else image.src = first.get(number);
  }

  // Galleries: the range moves the border between two versions of a picture, the menus say which.
  for (const gallery of document.querySelectorAll(".gallery")) {
    for (const slide of gallery.querySelectorAll(".slide")) {
      const range = slide.querySelector("input");
      range.addEventListener("input", () => slide.style.setProperty("--at", range.value + "%"));
    }
    const menus = [...gallery.querySelectorAll("select")];
    const choose = () => {
      const [left, right] = menus.map(menu => menu.value);
      for (const image of gallery.querySelectorAll(".stack img")) {
        image.hidden = image.dataset.label !== left && image.dataset.label !== right;
        image.classList.toggle("right", image.dataset.label === right && left !== right);
        image.style.zIndex = image.dataset.label === right ? 2 : 1;
      }
    };
    menus.forEach(menu => menu.addEventListener("change", choose));
    if (menus.length) choose();
  }

  // Heatmaps: the value of the cell under the pointer, or of the one that the arrow keys have reached.
  for (const over of document.querySelectorAll(".over")) {
    const [left, top, width, height] = over.dataset.box.split(" ").map(Number);
    Object.assign(over.style, { left: 100 * left + "%", top: 100 * top + "%", width: 100 * width + "%", height: 100 * height + "%" });
    const [rows, columns, values] = ["rows", "columns", "values"].map(key => JSON.parse(over.dataset[key]));
    const readout = over.closest("figure").querySelector(".readout");
    const canvas = over.closest(".scroll");
    const cell = document.createElement("div");
    cell.className = "cell";
    cell.hidden = true;
    over.append(cell);
    readout.textContent = readout.dataset.idle;
    let at = null;
    const show = (row, column) => {
      at = [row, column];
      Object.assign(cell.style, {
        left: 100 * column / columns.length + "%", top: 100 * (rows.length - 1 - row) / rows.length + "%",
        width: 100 / columns.length + "%", height: 100 / rows.length + "%",
      });
      cell.hidden = false;
      const beside = over.dataset.beside ? " (" + over.dataset.beside + ")" : "";
      readout.textContent = rows[row] + ", " + columns[column] + ": " + values[row][column] + beside;
    };
    const point = event => {
      const box = over.getBoundingClientRect();
      const place = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
      show(rows.length - 1 - place((event.clientY - box.top) / box.height, rows.length), place((event.clientX - box.left) / box.width, columns.length));
    };
    over.addEventListener("pointermove", point);
    over.addEventListener("pointerdown", point);
    over.addEventListener("pointerleave", event => {
      if (event.pointerType === "touch") return;  // the finger is gone, what it pointed at stays
 cell.hidden = true;
      readout.textContent = readout.dataset.idle;
    });
    const moves = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    canvas.addEventListener("keydown", event => {
      const move = moves[event.key];
      if (!move) return;
      event.preventDefault();
      const [row, column] = at ?? [move[0] < 0 ? rows.length : -1, 0];
      show(Math.min(rows.length - 1, Math.max(0, row + move[0])), Math.min(columns.length - 1, Math.max(0, column + move[1])));
    });
  }

  // On paper everything is open.
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(one => { one.open = true; }));
})();
