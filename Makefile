# Mainstay. `make demo` shows it, `make test` is all that CI runs.
GO      ?= go
VERSION ?= 0.1.0-dev
LDFLAGS  = -s -w -X main.release=$(VERSION)
PROFILE  = cmd/mainstay/default.pgo
PGO      = -pgo=$(PROFILE) # as the binary is built
GOLANGCI = github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

.PHONY: build demo test check bench bench-deploy bench-pooler bench-limits bench-claude docs fuzz clean setup

build: ## bin/mainstay and the demo's app
	@mkdir -p bin build
	$(GO) build -trimpath -pgo=$(PROFILE) -ldflags '$(LDFLAGS)' -o bin/mainstay ./cmd/mainstay
	cd examples/unitehub && $(GO) build -trimpath -o ../../bin/unitehub .

demo: ## a real app, bare and behind Mainstay, under the same load; ONCE=1 ends after the table
	@scripts/setup.sh postgres
	@$(MAKE) --no-print-directory build
	bin/mainstay demo $(if $(ONCE),--once --json build/demo.json)

test: ## everything CI runs
	@scripts/setup.sh all
	@$(MAKE) --no-print-directory check build PROFILE=off # the profile would have all compiled once more
	scripts/test.sh

check: export GOFLAGS += -pgo=off # else all is compiled once more
check: ## format, vet, lint, generated pages
	@test -z "$$(gofmt -l .)" || { echo "not formatted:"; gofmt -l .; exit 1; }
	$(GO) vet ./...
	cd examples/unitehub && $(GO) vet ./...
	$(GO) run $(GOLANGCI) run ./...

bench: ## ns/op, B/op and allocs/op of a whole exchange per plane, and the peers beside it
	@scripts/setup.sh postgres
	scripts/bench.sh

bench-deploy: ## 1,000 switches under load, beside kamal-proxy, nginx, HAProxy and Caddy where they are found (8 minutes)
	@scripts/setup.sh postgres
	$(GO) run $(PGO) ./bench/deploy

bench-pooler: ## the pooler beside PgBouncer and a direct connection
	@scripts/setup.sh all
	$(GO) run $(PGO) ./bench/pooler

bench-limits: ## limits beside redis_rate and an INCRBY pipeline
	@scripts/setup.sh all
	scripts/redis.sh $(GO) -C bench/limits run . -kill
	scripts/redis.sh $(GO) -C bench/limits run . -requests

bench-claude: ## the Claude plane beside a plain reverse proxy; FAULTS=1: what its callers see of faults, simulated (an hour)
	$(GO) run $(PGO) ./bench/claude $(if $(FAULTS),-faults)

docs: ## write the pages that are generated from the code
	$(GO) test ./internal/config -run Generated -update -count=1
	$(GO) test ./internal/app -run Generated -update -count=1

fuzz: ## every fuzz target for FUZZTIME (default 30s)
	scripts/fuzz.sh $(or $(FUZZTIME),30s)

setup: ## install what tests need
	@scripts/setup.sh all

clean:
	rm -rf bin build
