"use strict";
(() => {
  const list = document.getElementById("list");
  const rows = Array.from(list.children);
  const find = document.getElementById("find");
  const regime = document.getElementById("regime");
  const order = document.getElementById("order");
  const all = document.getElementById("all");
  const found = document.getElementById("found");
  const keys = { concern: "concern", matrix: "at", lost: "order" };
  const text = new Map(rows.map((row) => [row, row.querySelector(".who").textContent.toLowerCase()]));

  function filter() {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const kept = (!regime.value || row.dataset.regime === regime.value)
        && words.every((word) => text.get(row).includes(word));
      row.hidden = !kept;
      shown += kept;
    }
    found.textContent = shown === rows.length ? "" : `${shown} of ${rows.length} rows`;
  }

  function sort() {
    const key = keys[order.value];
    rows.sort((a, b) => a.dataset[key] - b.dataset[key]);
    list.append(...rows);
  }

  function show(hash) {
    const row = /^#r\d+$/.test(hash) ? document.getElementById(hash.slice(1)) : null;
    if (!row) return;
    if (row.hidden) { find.value = ""; regime.value = ""; filter(); }
    row.open = true;
    row.scrollIntoView({ block: "start" });
    row.querySelector("summary").focus({ preventScroll: true });
  }

  find.addEventListener("input", filter);
  regime.addEventListener("change", filter);
  order.addEventListener("change", sort);
  all.addEventListener("click", () => {
    const open = all.getAttribute("aria-pressed") !== "true";
    for (const row of rows) if (!row.hidden) row.open = open;
    all.setAttribute("aria-pressed", String(open));
    all.textContent = open ? "Close all" : "Open all";
  });
  addEventListener("hashchange", () => show(location.hash));
  // a second click on the same field changes no hash
  addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#r"]');
    if (link && link.hash === location.hash) show(link.hash);
  });
  document.querySelector(".tools").hidden = false;
  show(location.hash);
})();
