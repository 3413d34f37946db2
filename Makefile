# A thin front of meson: `make`, `make test`, `make demo`, `make install`; and
# `make sim`, the simulator for about twenty minutes, with its totals.
BUILD ?= build

all: setup
	@test -f $(BUILD)/build.ninja || meson setup $(BUILD) >/dev/null
	@ninja -C $(BUILD) $(NINJA_FLAGS)

setup:
	@tools/setup.sh

setup-tests:
	@tools/setup.sh --tests

test: setup-tests all
	@tests/run $(BUILD)

sim: setup-tests all
	@tests/run-sim $(BUILD)

demo: setup-tests all
	@tools/demo $(BUILD)

bench: setup-tests all
	@bench/bench.py $(BUILD) --json $(BUILD)/bench.json --svg docs/bench.svg

bench-quick: setup-tests all
	@bench/bench.py $(BUILD) --quick --json $(BUILD)/bench-quick.json

install: all
	@ninja -C $(BUILD) install

clean:
	rm -rf $(BUILD)

.PHONY: all setup setup-tests test sim demo bench bench-quick install clean
