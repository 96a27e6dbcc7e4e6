// Tells the server which part of the image the viewer shows, a moment after it was moved. Reads nothing else, asks nobody.
let send = () => {};
let timer;

function report(plot) {
  const { xaxis, yaxis } = plot._fullLayout;
  send([...xaxis.range, ...yaxis.range].map((value) => Math.round(value * 1000) / 1000));
}

export default function ({ data, setStateValue }) {
  send = (view) => setStateValue("view", view);
  const watch = () => {
    const plot = document.querySelector(`.st-key-${data.panel} .js-plotly-plot`);
    if (!plot || !plot.on || plot.xvisionWatched) return;
    plot.xvisionWatched = true;
    plot.on("plotly_relayout", () => {
      clearTimeout(timer);
      timer = setTimeout(report, 250, plot);
    });
  };
  const observer = new MutationObserver(watch);
  observer.observe(document.querySelector("[data-testid=stMain]") ?? document.body, { childList: true, subtree: true });
  watch();
  return () => observer.disconnect();
}
