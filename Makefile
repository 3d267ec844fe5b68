# The commands of a contributor. `make` lists them. What they need beyond Go 1.26 and Debian's
# packages they build or fetch, and keep in the user's cache directory (see e2e/cluster/README.md).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The version that programs report.
VERSION ?= dev
export VERSION

# One set of compiler flags for programs, images and tests: with different ones Go compiles all
# dependencies once for each, which is minutes. gRPC's tracing pages are left out: templates call
# methods by name, for which the linker keeps every method of every type, a third of tulled.
CGO_ENABLED ?= 0
export CGO_ENABLED
export GOFLAGS := -trimpath -buildvcs=false -tags=grpcnotrace

# Further flags of `go test`, as in: make test CGO_ENABLED=1 TEST_FLAGS='-race -run Delta'
TEST_FLAGS ?=
E2E_FLAGS ?=

TOOL := go tool -modfile=$(CURDIR)/.ci/tools/go.mod

##@ Help

.PHONY: help
help: ## List the commands.
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n\033[1m%s\033[0m\n", substr($$0, 5) } \
	  /^[a-z0-9-]+:.*## / { printf "  \033[36m%-14s\033[0m %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##@ See it run

.PHONY: demo
demo: ## Install Tulle and a small shop in a cluster, and show what the mesh does (starts one if KUBECONFIG names none).
	@e2e/cluster/with.sh go run -C e2e ./demo

.PHONY: cluster
cluster: ## Start a one-node Kubernetes on this machine (needs root; the first build takes 20 minutes).
	@kubeconfig=$$(e2e/cluster/up.sh); \
	printf '\nTo use it:\n  export KUBECONFIG=%s\n  export PATH=$$PATH:%s\n' \
	  "$$kubeconfig" "$$(e2e/cluster/build.sh kubernetes)"

.PHONY: cluster-down
cluster-down: ## Stop that cluster and remove all of it.
	@e2e/cluster/down.sh

.PHONY: images
images: ## Build the images without docker and bring those that changed into the cluster.
	@e2e/images/build.sh

.PHONY: envoy
envoy: ## Print the path of the stock Envoy, fetching it if need be.
	@e2e/images/envoy.sh

##@ Develop

.PHONY: build
build: ## Compile the programs into bin/.
	go build -buildvcs=auto -ldflags="-X main.version=$(VERSION)" -o bin/ ./cmd/...

.PHONY: generate
generate: ## Write what is generated: deepcopy, CRDs, RBAC, API reference.
	.ci/tools/generate.sh

.PHONY: golden
golden: ## Rewrite the goldens with what the code makes now; read the difference before you commit it.
	@packages=$$(grep -rl --include='*_test.go' 'flag.Bool("update"' --exclude-dir=e2e --exclude-dir=.ci . | xargs -n1 dirname | sort -u); \
	$(test_environment); \
	go test -count=1 $$packages -update

##@ Check

# Tests run real programs: an Envoy, an API server and its etcd.
define test_environment
ENVOY=$$(e2e/images/envoy.sh); TULLE_KUBE_BIN=$$(e2e/cluster/build.sh kubernetes); export ENVOY TULLE_KUBE_BIN
endef

.PHONY: test
test: ## Run all tests but those that need a cluster.
	@$(test_environment); \
	go test $(TEST_FLAGS) ./...; \
	go test -C e2e $(TEST_FLAGS) ./demo/... ./echo/... ./images/... ./kube/...; \
	go test -C .ci/tools/alerts $(TEST_FLAGS) .

FUZZTIME ?= 30s

.PHONY: fuzz
fuzz: ## Make up bytes from outside for FUZZTIME (30s) for each of those who read them.
	@grep -rHoE --include='*_test.go' --exclude-dir=e2e '^func Fuzz[A-Za-z0-9]+' . | sort | while IFS=: read -r file name; do \
	  printf '%s of %s\n' "$${name#func }" "$$(dirname "$$file")"; \
	  go test "$$(dirname "$$file")" -run '^$$' -fuzz "^$${name#func }\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x </dev/null; \
	done

DECISIONS ?= 100000

.PHONY: soak
soak: ## Compare many decisions on random requests by random policies with a real Envoy's (DECISIONS; SEED replays).
	@$(test_environment); \
	go test ./xds/explain -count=1 -timeout=1h -v -run AsEnvoy -decisions=$(DECISIONS) -seed=$(if $(SEED),$(SEED),0)

.PHONY: e2e
e2e: ## Run the end-to-end tests on real pods (starts a cluster if KUBECONFIG names none).
	@e2e/cluster/with.sh go test -C e2e -count=1 -timeout=55m $(E2E_FLAGS) .

CHAOS ?= 1h
SEED ?=

.PHONY: chaos
chaos: ## Faults at random beside traffic, for CHAOS (1h); SEED replays a run.
	@TULLE_E2E_CHAOS=$(CHAOS) TULLE_E2E_SEED=$(SEED) e2e/cluster/with.sh go test -C e2e -count=1 -timeout=3h -v -run '^TestChaos$$' $(E2E_FLAGS) .

CONFORMANCE ?= mesh
CONFORMANCE_FLAGS ?=

.PHONY: conformance
conformance: ## Run the Gateway API's conformance suite and write its report (CONFORMANCE=gateway: of gateways; CONFORMANCE_FLAGS).
	@e2e/cluster/with.sh bash -c 'e2e/images/build.sh echo-basic echo-advanced coredns && \
	  go test -C e2e/conformance -count=1 -timeout=2h $${TULLE_NODE:+-exec "$$TULLE_NODE --net"} $(E2E_FLAGS) -args \
	    -conformance-options-file=$(CONFORMANCE).yaml -version=$(VERSION) $(CONFORMANCE_FLAGS)'

BENCH_FLAGS ?=

.PHONY: bench
bench: ## Measure the control plane with simulated sidecars (BENCH_FLAGS=--help tells of what; see e2e/bench/README.md).
	@$(test_environment); \
	go build -o bin/ ./cmd/tulled; \
	TULLED=$(CURDIR)/bin/tulled go run -C e2e ./bench $(BENCH_FLAGS)

.PHONY: bench-path
bench-path: ## Measure what a request costs on its way through two proxies, against a configuration by hand (BENCH_FLAGS).
	@e2e/cluster/with.sh bash -c 'e2e/images/build.sh fortio && go run -C e2e ./bench/path $(BENCH_FLAGS)'

.PHONY: lint
lint: ## Report what is not formatted or looks wrong (the first time compiles the linters, which takes minutes).
	go vet ./...
	go -C e2e vet ./...
	@unformatted=$$($(TOOL) gofumpt -l $$(git ls-files '*.go')); \
	if [ "$$unformatted" ]; then printf 'not formatted by gofumpt:\n%s\n' "$$unformatted"; exit 1; fi
	@for script in $$(git ls-files '*.sh' .ci/run); do bash -n "$$script"; done
	go tool -modfile=.ci/tools/lint/go.mod golangci-lint run
	.ci/tools/vulnerabilities.sh

.PHONY: verify
verify: ## Fail if a generated file is not what its sources say.
	.ci/tools/verify.sh

##@ Tidy up

.PHONY: clean
clean: ## Remove bin/. The cache of the cluster's programs stays; it is in ~/.cache/tulle.
	rm -rf bin
