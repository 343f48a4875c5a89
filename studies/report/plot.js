// Small multiples for Plotly: the position and the axes of each panel, independent of what is drawn.

const GAP = { across: 0.02, down: 0.08 };

// Panel number `place` of `count`, counted along rows; lengths are fractions of the plot.
function panelAt(place, count, across) {
  const down = Math.ceil(count / across), column = place % across, row = Math.floor(place / across);
  const gap = down > 1 ? GAP.down / (down - 1) : 0;
  const width = (1 - GAP.across * (across - 1)) / across, height = (1 - gap * (down - 1)) / down;
  const left = column * (width + GAP.across), top = 1 - row * (height + gap);
  return {
    number: place ? String(place + 1) : "", // Plotly calls the first pair of axes x and y, the second x2 and y2
    x: [left, left + width], y: [top - height, top], isLeftmost: column === 0, isLowest: place + across >= count, isNarrow: across < 3,
  };
}

// All panels share their axes; only those at the edge have labels.
function axesOf(panel, { isPlane, ranges, faint, line }) {
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: faint, zeroline: false, tickfont: { size: 10.5, color: faint } };
  const title = (text) => ({ text, font: { size: 11, color: faint }, standoff: 4 });
  const x = {
    ...axis, range: ranges.x, domain: panel.x, anchor: `y${panel.number}`, zeroline: !isPlane,
    showticklabels: panel.isLowest, nticks: panel.isNarrow ? 4 : 6, tickangle: 0,
  };
  const y = { ...axis, range: ranges.y, domain: panel.y, anchor: `x${panel.number}`, showticklabels: panel.isLeftmost };
  Object.assign(y, isPlane ? { nticks: 5 } : { tickvals: [0, 1], ticktext: ["harmless", "harmful"] });
  if (panel.number) [x.matches, y.matches] = ["x", "y"];
  if (panel.isLowest) x.title = title(isPlane ? "component 1" : "coordinate");
  if (panel.isLeftmost && isPlane) y.title = title("component 2");
  return { [`xaxis${panel.number}`]: x, [`yaxis${panel.number}`]: y };
}

function titleOf(panel, text) {
  const at = { xref: "paper", yref: "paper", x: panel.x[0], y: panel.y[1], xanchor: "left", yanchor: "bottom" };
  return { ...at, text: `<b>${plainText(text)}</b>`, showarrow: false, font: { size: 12 } };
}

// Plotly interprets some HTML in its texts, which text from a table must not use.
function plainText(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

// The range of an axis: all finite values, with a margin.
function spread(values) {
  const finite = values.filter(Number.isFinite);
  const low = finite.reduce((a, b) => Math.min(a, b), Infinity), high = finite.reduce((a, b) => Math.max(a, b), -Infinity);
  const room = (high - low || 1) * 0.06;
  return [low - room, high + room];
}

function whenIdle(task) {
  (window.requestIdleCallback ?? ((later) => setTimeout(later, 50)))(task);
}

// gzip in base64, unpacked by the browser; the page's security policy would block a data: URL as network access.
async function unpackPlotly() {
  const bytes = Uint8Array.from(atob(byId("plotly").textContent), (character) => character.charCodeAt(0));
  const source = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  document.head.append(make("script", {}, source));
  return window.Plotly;
}
