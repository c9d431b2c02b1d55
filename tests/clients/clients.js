// Destroys collections through one Node.js client: clients.js CLIENT [ID TOKEN_SECRET]...
//
// Prints a line a destroy: HTTP status, what became of it (destroyed, or the 1.1 error code), and what the client
// shows; `-` for what a client does not show. `run` compares the lines with what it expects.

const { inspect, isDeepStrictEqual } = require("util");
const { REST, CONSUMER_KEY, CONSUMER_SECRET, TOKEN } = process.env;
const application = { consumer_key: CONSUMER_KEY, consumer_secret: CONSUMER_SECRET };

const clients = {
  twitter(id, secret) {
    const Twitter = require("twitter");
    const options = { ...application, access_token_key: TOKEN, access_token_secret: secret };
    const api = new Twitter({ ...options, rest_base: `http://${REST}/1.1` });
    return new Promise((resolve) =>
      api.post("collections/destroy", { id }, (errors, body, response) =>
        resolve([response?.statusCode, errors?.[0]?.code, errors ?? body]),
      ),
    );
  },

  twit(id, secret) {
    const Twit = require("twit");
    const api = new Twit({ ...application, access_token: TOKEN, access_token_secret: secret });
    return api.post("collections/destroy", { id }).then(
      ({ data, resp }) => [resp.statusCode, undefined, data],
      (error) => [error.statusCode, error.code, error],
    );
  },
};

(async () => {
  const [client, ...pairs] = process.argv.slice(2);
  for (let at = 0; at < pairs.length; at += 2) {
    const [status, code, shown] = await clients[client](pairs[at], pairs[at + 1]);
    const text = shown instanceof Error ? String(shown) : inspect(shown);
    const became = isDeepStrictEqual(shown, { destroyed: true }) ? "destroyed" : code;
    console.log([status ?? "-", became ?? "-", text.replaceAll("\n", "\\n")].join("\t"));
  }
})();
