/**
 * A small chart of the last hour.
 *
 * Hides uPlot, and that its colours are those of the page's theme. What it shows is also said in words: nobody needs to see it.
 */

import { useEffect, useRef } from 'preact/hooks';
import uPlot from 'uplot';

export interface Line {
  readonly label: string;
  /** A custom property of the page's style, such as `--chart-1`. */
  readonly colour: string;
  readonly values: readonly number[];
}

const HEIGHT = 160;

export function Chart({
  label,
  summary,
  times,
  lines,
  format,
  least = 1,
}: {
  label: string;
  /** The same in a sentence. */
  summary: string;
  /** Seconds since the Unix epoch. */
  times: readonly number[];
  lines: readonly Line[];
  format: (value: number) => string;
  /** The top of the scale where there is less. */
  least?: number;
}) {
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | undefined>(undefined);
  const shown = useRef(lines);
  shown.current = lines;

  useEffect(() => {
    const element = place.current;
    if (element === null) return;
    const build = (): void => {
      plot.current?.destroy();
      plot.current = new uPlot(
        options(element, shown.current, format, least),
        [[...times], ...shown.current.map(({ values }) => [...values])],
        element,
      );
    };
    build();
    const resized = new ResizeObserver(() => plot.current?.setSize({ width: element.clientWidth, height: HEIGHT }));
    resized.observe(element);
    const dark = matchMedia('(prefers-color-scheme: dark)');
    dark.addEventListener('change', build);
    return () => {
      resized.disconnect();
      dark.removeEventListener('change', build);
      plot.current?.destroy();
      plot.current = undefined;
    };
  }, []);

  useEffect(() => {
    plot.current?.setData([[...times], ...lines.map(({ values }) => [...values])]);
  }, [times, lines]);

  return (
    <figure class="chart">
      <figcaption>
        <span>{label}</span>
        <span class="legend">
          {lines.map(({ label: name, colour }) => (
            <span key={name} class={`key ${colour.slice(2)}`}>
              {name}
            </span>
          ))}
        </span>
      </figcaption>
      <div ref={place} role="img" aria-label={`${label}: ${summary}`} />
    </figure>
  );
}

/** A canvas knows no custom properties: as the colour that it stands for. */
function resolved(element: HTMLElement, name: string): string {
  const probe = element.appendChild(document.createElement('span'));
  probe.style.color = `var(${name})`;
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}

function options(
  element: HTMLElement,
  lines: readonly Line[],
  format: (value: number) => string,
  least: number,
): uPlot.Options {
  const colour = (name: string) => resolved(element, name);
  const axis = {
    stroke: colour('--muted'),
    grid: { stroke: colour('--line'), width: 1 },
    ticks: { show: false },
    font: '12px system-ui, sans-serif',
  };
  return {
    width: element.clientWidth,
    height: HEIGHT,
    legend: { show: false },
    cursor: { show: false },
    scales: { y: { range: (_, __, max) => [0, Math.max(max * 1.1, least)] } },
    axes: [
      {
        ...axis,
        space: 70,
        // Times are shown to the minute: no two marks may say the same.
        incrs: [60, 120, 300, 600, 900, 1800, 3600],
        size: 28,
        values: (_, at) =>
          at.map((second) => new Date(second * 1000).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' })),
      },
      { ...axis, size: 76, values: (_, at) => at.map(format) },
    ],
    series: [
      {},
      ...lines.map(({ label, colour: name }) => ({
        label,
        stroke: colour(name),
        fill: `color-mix(in srgb, ${colour(name)} 12%, transparent)`,
        width: 2,
        points: { show: false },
      })),
    ],
  };
}
