// Checks custom resources, a JSON list on standard input, by the @kubernetes-models packages in the folder that is the argument.
// TypeScript finds fields that a resource does not have, and the packages' schemas find wrong values.
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const packages = {
  "cert-manager.io": "@kubernetes-models/cert-manager",
  "gateway.networking.k8s.io": "@kubernetes-models/gateway-api",
  "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
};
const folder = process.argv[2];
const source = ["export const failures: string[] = [];"];
for (const [index, resource] of JSON.parse(readFileSync(0, "utf8")).entries()) {
  const { apiVersion, kind, metadata } = resource;
  const path = `${packages[apiVersion.split("/")[0]]}/${apiVersion}`;
  source.push(`
import { ${kind} as Model${index}, type I${kind} as Type${index} } from ${JSON.stringify(path)};
const resource${index}: Type${index} = ${JSON.stringify(resource)};
try {
  new Model${index}(resource${index}).validate();
} catch (error) {
  failures.push(${JSON.stringify(`${kind}/${metadata.name}: `)} + error);
}`);
}
// In the folder, where the packages are found.
const work = mkdtempSync(join(folder, "check-"));
try {
  writeFileSync(join(work, "resources.mts"), source.join("\n"));
  const options = "--strict --skipLibCheck --target es2022 --module esnext --moduleResolution bundler".split(" ");
  execFileSync(join(folder, "node_modules/.bin/tsc"), [...options, join(work, "resources.mts")], { encoding: "utf8" });
  const { failures } = await import(join(work, "resources.mjs"));
  console.error(failures.join("\n"));
  process.exitCode = failures.length === 0 ? 0 : 1;
} catch (error) {
  console.error(error.stdout || error);
  process.exitCode = 1;
} finally {
  rmSync(work, { recursive: true });
}
