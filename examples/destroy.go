// Destroys a collection over gRPC. Run it from the root of the repository, with the Debian packages golang-go,
// golang-google-grpc-dev, golang-github-golang-protobuf-1-5-dev, protobuf-compiler, protoc-gen-go and protoc-gen-go-grpc:
//
//	M=Mcollections/v1/collections.proto=example.org/collections/v1
//	mkdir -p target/go/src
//	protoc -I proto --go_opt=$M --go_out=target/go/src --go-grpc_opt=$M --go-grpc_out=target/go/src \
//		collections/v1/collections.proto
//	export GO111MODULE=off GOPATH=$PWD/target/go:/usr/share/gocode GRPC_GO_RETRY=on
//	go run examples/destroy.go ADDRESS USER ID
//
// M has the import path of the generated code: choose your own. grpc-go 1.33, which Debian 12 has, retries only with
// GRPC_GO_RETRY=on.
//
// ADDRESS is a gRPC target: 127.0.0.1:50051 for `collections-service dev`, or dns:///NAME:PORT for all addresses of a name.
// For mutual TLS set TLS_CA, TLS_CERT and TLS_KEY to PEM files. To repeat an operation whose outcome is unknown, set
// REQUEST_ID to the one that was printed.
//
// Exit codes: 0 destroyed, 3 not found, 4 not permitted, 5 outcome unknown, 2 wrong arguments, 1 any other error.
package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	_ "google.golang.org/grpc/health" // without it the channel ignores healthCheckConfig
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	collections "example.org/collections/v1"
)

// deadline limits all attempts together.
const deadline = 5 * time.Second

// serviceConfig asks for health-checked round robin and for retries of UNAVAILABLE. gRPC carries both out.
const serviceConfig = "deploy/service-config.json"

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: destroy ADDRESS USER ID")
		os.Exit(2)
	}
	connection, err := connect(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "failed:", err)
		os.Exit(1)
	}
	os.Exit(destroy(collections.NewCollectionsServiceClient(connection), os.Args[2], os.Args[3]))
}

func connect(address string) (*grpc.ClientConn, error) {
	config, err := os.ReadFile(serviceConfig)
	if err != nil {
		return nil, err
	}
	transport, err := transportCredentials()
	if err != nil {
		return nil, err
	}
	return grpc.Dial(address, transport, grpc.WithDefaultServiceConfig(string(config)))
}

// transportCredentials is mutual TLS where TLS_CA is set, and plaintext otherwise.
func transportCredentials() (grpc.DialOption, error) {
	if os.Getenv("TLS_CA") == "" {
		return grpc.WithInsecure(), nil
	}
	authorities, err := os.ReadFile(os.Getenv("TLS_CA"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authorities) {
		return nil, fmt.Errorf("TLS_CA has no certificate")
	}
	own, err := tls.LoadX509KeyPair(os.Getenv("TLS_CERT"), os.Getenv("TLS_KEY"))
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{own}}
	return grpc.WithTransportCredentials(credentials.NewTLS(config)), nil
}

func destroy(client collections.CollectionsServiceClient, user, collection string) int {
	// One for the operation, the same in every attempt: without it, a retry after a lost answer gets NOT_FOUND.
	requestID := os.Getenv("REQUEST_ID")
	if requestID == "" {
		requestID = newUUID()
	}
	request := &collections.DestroyRequest{Id: collection, RequestId: requestID}

	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "x-user-id", user)
	// grpc-go 1.33 retries no call that finds no connection: it fails or, with this, waits.
	_, err := client.Destroy(ctx, request, grpc.WaitForReady(true))

	answer := status.Convert(err)
	switch answer.Code() {
	case codes.OK:
		fmt.Println("destroyed", collection)
		return 0
	case codes.NotFound:
		fmt.Fprintln(os.Stderr, collection, "does not exist, or was destroyed already")
		return 3
	case codes.PermissionDenied:
		fmt.Fprintln(os.Stderr, "not permitted:", answer.Message())
		return 4
	case codes.Unavailable, codes.DeadlineExceeded:
		fmt.Fprintf(os.Stderr, "outcome unknown: %s\nto try again: REQUEST_ID=%s\n", answer.Message(), requestID)
		return 5
	default:
		fmt.Fprintf(os.Stderr, "failed: %s: %s\n", answer.Code(), answer.Message())
		return 1
	}
}

// newUUID returns a random UUID (version 4).
func newUUID() string {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic(err) // the system has no randomness
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
