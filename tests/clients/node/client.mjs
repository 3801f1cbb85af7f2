// Trains rows on a Rockbed server and prints what it saw as JSON, for tests/clients/test_node.py.
//
//   node client.mjs 127.0.0.1:7400 ../../../proto    the services from the proto files
//   node client.mjs 127.0.0.1:7400                   the services as the server describes them (reflection)
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";
import health from "grpc-health-check";
import reflection from "grpc-js-reflection-client";

const [address, proto] = process.argv.slice(2);
const credentials = grpc.credentials.createInsecure();

function fromFiles() {
  const files = ["rockbed/v1/embedding.proto", "rockbed/v1/admin.proto"];
  const options = { includeDirs: [proto], keepCase: true, defaults: true };
  return grpc.loadPackageDefinition(protoLoader.loadSync(files, options)).rockbed.v1;
}

async function fromServer() {
  const client = new reflection.GrpcReflection(address, credentials);
  const found = {};
  for (const service of await client.listServices()) {
    if (!service.startsWith("rockbed.v1.")) continue;
    const descriptor = await client.getDescriptorBySymbol(service);
    Object.assign(found, descriptor.getPackageObject({ keepCase: true, defaults: true }).rockbed.v1);
  }
  return found;
}

// A method as a promise.
const call = (client, method, request) =>
  new Promise((resolve, reject) => client[method](request, (error, answer) => (error ? reject(error) : resolve(answer))));

const { Admin, Embedding } = proto ? fromFiles() : await fromServer();
const admin = new Admin(address, credentials);
const rows = new Embedding(address, credentials);

const config = {
  group: 1,
  dim: 4,
  optimizer: { name: "sgd", gamma: 0.5 },
  initializer: { name: "random_uniform", min: -1, max: 1 },
};
await call(admin, "CreateGroup", { config_json: JSON.stringify(config) });

// Arrays are raw little-endian bytes. Keys have 64 bits, a Number has 53: hence BigInt.
const bytes = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength);
const floats = (buffer) => new Float32Array(new Uint8Array(buffer).buffer);
const keys = bytes(BigInt64Array.of(7n, -1n, 2n ** 62n + 1n, 7n));
const gradients = Float32Array.from({ length: 4 * config.dim }, (_, i) => Math.sin(i));

const before = await call(rows, "Lookup", { group: 1, keys, train: true });
const push = {
  groups: [{ group: 1, keys, gradients: bytes(gradients) }],
  client_id: "trainer-1", // with a number of its own, a push may be sent again and is applied once
  request_number: 1,
};
const first = await call(rows, "ApplyGradients", push);
const again = await call(rows, "ApplyGradients", push);
const after = await call(rows, "Lookup", { group: 1, keys });

const unknown = await call(rows, "Lookup", { group: 9, keys }).catch((error) => error);

const Health = grpc.makeGenericClientConstructor(health.service, "Health");
const healthOf = async (service) => (await call(new Health(address, credentials), "check", { service })).status;

const seen = {
  before: [...floats(before.weights)],
  gradients: [...gradients],
  after: [...floats(after.weights)],
  applied: [first.applied, again.applied],
  unknown: [unknown.code, ...unknown.metadata.get("rockbed-code")],
  health: [await healthOf(""), await healthOf("rockbed.v1.Embedding")],
};
console.log(JSON.stringify(seen));
