'use strict';
// Values under the pointer: places and words come with each plot, so nothing is computed here.
for (const box of document.querySelectorAll('.plot[data-plot]')) {
  const plot = JSON.parse(box.dataset.plot);
  const svg = box.querySelector('svg');
  const tip = box.appendChild(document.createElement('div'));
  tip.className = 'tip';
  const line = document.createElementNS('http://www.w3.org/2000/svg', 'line');
  line.setAttribute('y1', plot.top);
  line.setAttribute('y2', plot.bottom);
  line.setAttribute('stroke', '#52606D');
  line.setAttribute('visibility', 'hidden');
  svg.appendChild(line);
  const nearest = (points, x) => points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
  const hide = () => {
    tip.style.display = 'none';
    line.setAttribute('visibility', 'hidden');
  };
  box.addEventListener('pointermove', (event) => {
    const frame = svg.getBoundingClientRect();
    const x = ((event.clientX - frame.left) / frame.width) * plot.width;
    const found = plot.curves.filter((c) => c.points.length).map((c) => [c, nearest(c.points, x)]);
    if (!found.length) return;
    const at = found.map(([, p]) => p).reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
    line.setAttribute('x1', at[0]);
    line.setAttribute('x2', at[0]);
    line.setAttribute('visibility', 'visible');
    tip.replaceChildren();
    tip.appendChild(document.createElement('div')).textContent = at[2];
    for (const [curve, point] of found) {
      const row = tip.appendChild(document.createElement('div'));
      row.appendChild(document.createElement('i')).className = `key k${curve.color}`;
      row.append(`${curve.name}: ${point[3]}`);
    }
    tip.style.display = 'block';
    const left = (at[0] / plot.width) * frame.width;
    tip.style.left = `${Math.max(0, left > frame.width / 2 ? left - tip.offsetWidth - 10 : left + 10)}px`;
  });
  box.addEventListener('pointerleave', hide);
}
