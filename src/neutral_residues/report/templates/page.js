"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const canvases = all(".canvas");

  // Text and lines of a figure follow the page, in light and in dark.
  const theme = () => {
    const [ink, soft, line, paper] = ["--ink", "--soft", "--line", "--paper"].map(colour);
    return {
      "font.color": ink, "hoverlabel.font.color": ink,
      "hoverlabel.bgcolor": paper, "hoverlabel.bordercolor": soft,
      "xaxis.gridcolor": line, "yaxis.gridcolor": line,
      "xaxis.linecolor": soft, "yaxis.linecolor": soft,
      "xaxis.zerolinecolor": soft, "yaxis.zerolinecolor": soft,
    };
  };

  const draw = async (canvas) => {
    const json = document.getElementById(`${canvas.id}-data`).textContent;
    const { data, layout, views } = JSON.parse(json);
    // Drag to zoom, double-click to see everything: a bar of tools would cover legends and values.
    // A finger scrolls the page.
    layout.dragmode = matchMedia("(hover: hover)").matches ? "zoom" : false;
    await Plotly.newPlot(canvas, data, layout, { responsive: true, displayModeBar: false });
    await Plotly.relayout(canvas, theme());
    canvas.dataset.drawn = "true";
    const buttons = all("[data-view]", canvas.closest("figure"));
    buttons.forEach((button) => choose(canvas, views, button));
  };

  const choose = (canvas, views, button) => button.addEventListener("click", () => {
    const view = views[button.dataset.view];
    const arrays = view.x.map((_, index) => (view.error[index] || []).map((value) => value || 0));
    Plotly.update(canvas, { x: view.x, y: view.y, "error_x.array": arrays },
      { "xaxis.title.text": view.title, "xaxis.range": view.range });
    const buttons = all("[data-view]", button.parentElement);
    buttons.forEach((other) => other.setAttribute("aria-pressed", other === button));
  });

  // A press on the legend hides or shows a run in every figure of its section.
  const toggle = (button) => button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", shown);
    const { section, curve } = button.dataset;
    const drawn = canvases.filter((canvas) => canvas.dataset.section === section && canvas.data);
    drawn.forEach((canvas) => {
      const traces = [...canvas.data.keys()].filter((n) => canvas.data[n].meta?.curve === curve);
      if (traces.length) Plotly.restyle(canvas, { visible: shown }, traces);
    });
  });

  const value = (row, index) => {
    const cell = row.cells[index];
    if (index === 0) return cell.textContent.trim();
    return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
  };
  const order = (a, b, sign) => {
    // What was not measured comes last.
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (typeof a === "string" ? a.localeCompare(b) : a - b);
  };
  const sort = (header) => {
    const ascending = header.getAttribute("aria-sort") !== "ascending";
    all("th", header.parentElement).forEach((other) => other.setAttribute("aria-sort", "none"));
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const body = header.closest("table").tBodies[0];
    const rows = [...body.rows];
    const sign = ascending ? 1 : -1;
    rows.sort((a, b) => order(value(a, header.cellIndex), value(b, header.cellIndex), sign));
    body.append(...rows);
  };

  const words = (cell) => {
    const text = cell.textContent.replace(/\s+/g, " ").trim();
    return text.replace(/([\\|<>`*_[\]])/g, "\\$1");
  };
  const markdown = (table) => {
    const lines = [...table.rows].map((row) => `| ${[...row.cells].map(words).join(" | ")} |`);
    lines.splice(1, 0, `|---|${"---:|".repeat(table.rows[0].cells.length - 1)}`);
    return `${lines.join("\n")}\n`;
  };
  const copied = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      return false;
    }
  };
  // Where the browser offers no clipboard, the old way; where that fails too, the text is shown.
  const copy = async (button) => {
    const text = markdown(document.getElementById(button.dataset.copy));
    all("textarea", button.parentElement).forEach((area) => area.remove());
    let done = await copied(text);
    if (!done) {
      const area = document.createElement("textarea");
      area.value = text;
      area.readOnly = true;
      area.setAttribute("aria-label", "The table as Markdown");
      button.parentElement.append(area);
      area.select();
      done = document.execCommand("copy");
      if (done) area.remove();
    }
    button.textContent = done ? "Copied" : "Copy the text below";
    setTimeout(() => { button.textContent = "Copy as Markdown"; }, 2000);
  };

  all(".sortable thead button").forEach((button) => {
    button.addEventListener("click", () => sort(button.closest("th")));
  });
  all("[data-copy]").forEach((button) => button.addEventListener("click", () => copy(button)));
  all(".legend button").forEach(toggle);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    canvases.filter((canvas) => canvas.data).forEach((canvas) => Plotly.relayout(canvas, theme()));
  });
  Promise.all(canvases.map(draw)).then(() => { document.documentElement.dataset.ready = "true"; });
})();
