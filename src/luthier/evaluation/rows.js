"use strict";
// The rows of a page: one list of them all, by fate, class and words, some at a time. Nothing is made of any text here:
// rows that stand in the page are moved, shown and hidden.
{
  const section = document.getElementById("rows");
  if (section) {

    const all = (what) => [...section.querySelectorAll(what)];
    const list = document.getElementById("list");
    const rows = all(".one");
    const A_PAGE = list.matches("tbody") ? 25 : 10;
    const chips = all(".chips button");
    const classes = section.querySelector("select");
    const search = section.querySelector("input");
    const [before, after] = ["before", "after"].map((id) => document.getElementById(id));
    const texts = new Map(); // a row's text in small letters, once it has been looked at
    let found = rows;
    let start = 0;

    const text = (row) => {
      if (!texts.has(row)) texts.set(row, row.textContent.toLowerCase());
      return texts.get(row);
    };

    const show = () => {
      const shown = new Set(found.slice(start, start + A_PAGE));
      for (const row of rows) row.hidden = !shown.has(row);
      section.querySelector(".none").hidden = found.length > 0;
      const from = found.length ? start + 1 : 0;
      const count = (n) => n.toLocaleString("en");
      section.querySelector(".count").textContent =
        `${count(from)}–${count(Math.min(start + A_PAGE, found.length))} of ${count(found.length)}`;
      before.disabled = start === 0;
      after.disabled = start + A_PAGE >= found.length;
    };

    const find = () => {
      const fate = chips.find((chip) => chip.ariaPressed === "true").dataset.fate;
      const kind = classes ? classes.value : "";
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      found = rows.filter(
        (row) =>
          (!fate || row.dataset.fate === fate) &&
          (!kind || row.dataset.class === kind) &&
          words.every((word) => text(row).includes(word)),
      );
      start = 0;
      show();
    };

    const turn = (by) => {
      start += by * A_PAGE;
      show();
      section.scrollIntoView({ block: "start" });
    };

    for (const chip of chips) {
      chip.addEventListener("click", () => {
        for (const other of chips) other.ariaPressed = String(other === chip);
        find();
      });
    }
    if (classes) classes.addEventListener("change", find);
    search.addEventListener("input", find);
    before.addEventListener("click", () => turn(-1));
    after.addEventListener("click", () => turn(1));

    list.append(...rows);
    document.getElementById("plainly").remove();
    document.getElementById("browser").hidden = false;
    document.getElementById("tools").hidden = false;
    show();
  }
}
