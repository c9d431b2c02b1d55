#!/usr/bin/env bash
# Destroys a collection over gRPC with grpcurl. Usage: examples/destroy.sh ADDRESS USER ID
#
# ADDRESS is HOST:PORT: 127.0.0.1:50051 for `collections-service dev`. For mutual TLS set TLS_CA, TLS_CERT and TLS_KEY to PEM
# files. To repeat an operation whose outcome is unknown, set REQUEST_ID to the one that was printed.
#
# Exit codes: 0 destroyed, 3 not found, 4 not permitted, 5 outcome unknown, 2 wrong arguments, 1 any other error.
set -euo pipefail
[ $# = 3 ] || { echo "usage: destroy.sh ADDRESS USER ID" >&2; exit 2; }
address=$1 user=$2 id=$3
proto=$(dirname "$0")/../proto
deadline=$((SECONDS + 5)) # for all attempts together

# One for the operation, the same in every attempt: without it, a retry after a lost answer gets NOT_FOUND.
request_id=${REQUEST_ID:-$(cat /proc/sys/kernel/random/uuid)}

transport=(-plaintext)
[ -z "${TLS_CA-}" ] || transport=(-cacert "$TLS_CA" -cert "$TLS_CERT" -key "$TLS_KEY")

# grpcurl reads no service config: these are the pauses of deploy/service-config.json, in seconds.
for pause in 0.1 0.3 0.9 2 none; do
    code=0
    answer=$(grpcurl "${transport[@]}" -import-path "$proto" -proto collections/v1/collections.proto \
        -max-time $((deadline - SECONDS)) -H "x-user-id: $user" \
        -d "{\"id\":\"$id\",\"request_id\":\"$request_id\"}" \
        "$address" collections.v1.CollectionsService/Destroy 2>&1) || code=$?
    message=$(sed -n 's/^ *Message: //p' <<<"$answer")
    message=${message:-$answer}
    # grpcurl exits with 64 plus the status code, or with 1 where it could not connect.
    case $code:$answer in
        0:*) echo "destroyed $id" && exit 0 ;;
        69:*) echo "$id does not exist, or was destroyed already" >&2 && exit 3 ;;
        71:*) echo "not permitted: $message" >&2 && exit 4 ;;
        68:*) break ;;
        78:* | 1:*"Failed to dial"*) ;;
        *) echo "failed: $message" >&2 && exit 1 ;;
    esac
    if [ "$pause" = none ] || [ "$SECONDS" -ge "$deadline" ]; then break; fi
    sleep "$pause"
done
echo "outcome unknown: $message" >&2
echo "to try again: REQUEST_ID=$request_id" >&2
exit 5
