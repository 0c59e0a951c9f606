/** What is used of the package `radius`, which brings no types: its encoder. */
declare module 'radius' {
  export type Attribute = readonly [name: string, value: string | number | Uint8Array];

  interface Codec {
    /** Reads what attributes there are from files, once. */
    load_dictionaries(): void;
    /** Bytes of a packet. The order of attributes is kept; an Accounting-Request is signed. */
    encode(packet: {
      code: 'Access-Request' | 'Accounting-Request';
      identifier: number;
      secret: string;
      attributes: Attribute[];
      add_message_authenticator: boolean;
    }): Buffer;
  }

  const codec: Codec;
  export default codec;
}
