/** What the bundler does with a style: it is collected, and nothing is imported. */
declare module '*.css';
