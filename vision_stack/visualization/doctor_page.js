"use strict";
// Filters of the findings, which pictures follow, and tables that are sorted by a click on a head.
(function () {
  const names = ["severity", "kind", "split"];
  const inputs = names.map((name) => document.getElementById(name));
  const words = document.getElementById("words");
  const shown = document.getElementById("shown");
  const rows = Array.from(document.querySelectorAll("#findings tbody tr"));
  const figures = Array.from(document.querySelectorAll("#pictures figure"));
  const totals = Array.from(document.querySelectorAll("#totals button"));

  function filter() {
    const wanted = inputs.map((input) => input.value);
    const text = words.value.trim().toLowerCase();
    function fits(element) {
      const chosen = names.every((name, n) => !wanted[n] || element.dataset[name] === wanted[n]);
      return chosen && (!text || element.textContent.toLowerCase().includes(text));
    }
    for (const element of rows.concat(figures)) element.hidden = !fits(element);
    shown.textContent = rows.filter((row) => !row.hidden).length + " of " + rows.length + " shown";
    for (const button of totals) {
      button.setAttribute("aria-pressed", String(button.dataset.severity === inputs[0].value));
    }
  }

  if (rows.length) {
    for (const input of inputs.concat(words)) input.addEventListener("input", filter);
    document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
    for (const button of totals) {
      button.addEventListener("click", () => {
        inputs[0].value = inputs[0].value === button.dataset.severity ? "" : button.dataset.severity;
        filter();
      });
    }
    filter();
  }

  for (const figure of figures) {
    figure.querySelector("button").addEventListener("click", () => figure.classList.toggle("large"));
  }

  const order = new Intl.Collator(undefined, { numeric: true });
  function value(row, column) {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim() : cell.dataset.value;
  }
  for (const table of document.querySelectorAll("table")) {
    const heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const descending = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        const sorted = Array.from(table.tBodies[0].rows);
        sorted.sort((a, b) => (descending ? -1 : 1) * order.compare(value(a, column), value(b, column)));
        table.tBodies[0].append(...sorted);
      });
    });
  }
})();
