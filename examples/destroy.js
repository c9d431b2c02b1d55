// Destroys a collection over gRPC. Run it from the root of the repository:
//
//     npm install --prefix target/node @grpc/grpc-js @grpc/proto-loader
//     NODE_PATH=target/node/node_modules node examples/destroy.js ADDRESS USER ID
//
// ADDRESS is a gRPC target: 127.0.0.1:50051 for `collections-service dev`, or dns:///NAME:PORT for all addresses of a name.
// For mutual TLS set TLS_CA, TLS_CERT and TLS_KEY to PEM files. To repeat an operation whose outcome is unknown, set
// REQUEST_ID to the one that was printed.
//
// Exit codes: 0 destroyed, 3 not found, 4 not permitted, 5 outcome unknown, 2 wrong arguments, 1 any other error.
'use strict';

const { randomUUID } = require('node:crypto');
const { readFileSync } = require('node:fs');
const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const DEADLINE = 5000; // milliseconds, for all attempts together

const root = path.join(__dirname, '..');
const { CollectionsService } = grpc.loadPackageDefinition(
  loader.loadSync('collections/v1/collections.proto', { includeDirs: [path.join(root, 'proto')], keepCase: true }),
).collections.v1;

// Round robin, and retries of UNAVAILABLE. gRPC carries both out; grpc-js ignores healthCheckConfig: a replica that
// is not serving answers UNAVAILABLE, which is retried.
const serviceConfig = readFileSync(path.join(root, 'deploy', 'service-config.json'), 'utf8');

function credentials() {
  const { TLS_CA, TLS_KEY, TLS_CERT } = process.env;
  if (!TLS_CA) return grpc.credentials.createInsecure();
  return grpc.credentials.createSsl(readFileSync(TLS_CA), readFileSync(TLS_KEY), readFileSync(TLS_CERT));
}

// Prints why a call failed, and returns the exit code.
function explain(error, id, requestId) {
  switch (error.code) {
    case grpc.status.NOT_FOUND:
      console.error(`${id} does not exist, or was destroyed already`);
      return 3;
    case grpc.status.PERMISSION_DENIED:
      console.error(`not permitted: ${error.details}`);
      return 4;
    case grpc.status.UNAVAILABLE:
    case grpc.status.DEADLINE_EXCEEDED:
      console.error(`outcome unknown: ${error.details}\nto try again: REQUEST_ID=${requestId}`);
      return 5;
    default:
      console.error(`failed: ${grpc.status[error.code]}: ${error.details}`);
      return 1;
  }
}

if (process.argv.length !== 5) {
  console.error('usage: destroy.js ADDRESS USER ID');
  process.exit(2);
}
const [address, user, id] = process.argv.slice(2);

// One for the operation, the same in every attempt: without it, a retry after a lost answer gets NOT_FOUND.
const requestId = process.env.REQUEST_ID || randomUUID();

const client = new CollectionsService(address, credentials(), { 'grpc.service_config': serviceConfig });
const metadata = new grpc.Metadata();
metadata.set('x-user-id', user);

client.destroy({ id, request_id: requestId }, metadata, { deadline: Date.now() + DEADLINE }, (error) => {
  client.close();
  if (!error) console.log(`destroyed ${id}`);
  process.exitCode = error ? explain(error, id, requestId) : 0;
});
