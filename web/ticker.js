// A worker's timers keep their pace while the page's tab is in the background; the page's own are slowed to one a second.
let timer;
onmessage = ({ data: interval_ms }) => {
  clearInterval(timer);
  if (interval_ms > 0) timer = setInterval(() => postMessage(null), interval_ms);
};
