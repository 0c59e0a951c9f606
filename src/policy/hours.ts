/**
 * Times at which a rule is in force: days of the week and hours of the day, in a time zone.
 *
 * Hides the calendar. An end before its start is on the next day, which still belongs to the day of the start.
 */

export const DAYS = ['mon', 'tue', 'wed', 'thu', 'fri', 'sat', 'sun'] as const;

export type Day = (typeof DAYS)[number];

export interface HoursOptions {
  /** None: every day. */
  readonly days?: readonly Day[] | undefined;
  /** `HH:MM`; the whole day without both. */
  readonly from?: string | undefined;
  readonly to?: string | undefined;
  /** Of the time zone database, such as `Europe/Berlin`. Default: UTC. */
  readonly zone?: string | undefined;
}

const DAY_MINUTES = 1_440;

export class Hours {
  readonly #days: ReadonlySet<Day>;
  readonly #from: number;
  readonly #to: number;
  readonly #format: Intl.DateTimeFormat;
  readonly #key: string;

  constructor({ days = DAYS, from = '00:00', to = '24:00', zone = 'UTC' }: HoursOptions) {
    this.#days = new Set(days);
    this.#from = minutesOf(from);
    this.#to = minutesOf(to);
    this.#format = new Intl.DateTimeFormat('en-GB', {
      timeZone: zone,
      weekday: 'short',
      hour: '2-digit',
      minute: '2-digit',
      hourCycle: 'h23',
    });
    this.#key = JSON.stringify([[...this.#days].sort(), this.#from, this.#to, zone]);
  }

  /** The same for the same times. */
  get key(): string {
    return this.#key;
  }

  /** @param at milliseconds since the Unix epoch */
  includes(at: number): boolean {
    const parts = new Map(this.#format.formatToParts(at).map(({ type, value }) => [type, value]));
    const today = DAYS.findIndex((day) => day === parts.get('weekday')?.toLowerCase());
    const minute = minutesOf(`${parts.get('hour')}:${parts.get('minute')}`);
    if (this.#from < this.#to) return minute >= this.#from && minute < this.#to && this.#isOn(today);
    return (minute >= this.#from && this.#isOn(today)) || (minute < this.#to && this.#isOn(today + 6));
  }

  #isOn(day: number): boolean {
    const name = DAYS[day % 7];
    return name !== undefined && this.#days.has(name);
  }
}

/** Whether the machine's time zone database has it. */
export function isZone(zone: string): boolean {
  try {
    return new Intl.DateTimeFormat('en-GB', { timeZone: zone }).resolvedOptions().timeZone !== '';
  } catch {
    return false;
  }
}

function minutesOf(clock: string): number {
  const [hours = 0, minutes = 0] = clock.split(':').map(Number);
  return Math.min(hours * 60 + minutes, DAY_MINUTES);
}
