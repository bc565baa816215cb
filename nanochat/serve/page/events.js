// This file holds server-sent events as they arrive.
//
// Reference: WHATWG, HTML, section 9.2.

/** The data of each event of a response's body. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      // A carriage return at the end may be half of a line end.
      const lines = (rest + part.value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (!line && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    // Whoever wants no more leaves the connection.
    await reader.cancel().catch(() => undefined);
  }
}
