# A thin front of meson: `make`, `make test`, `make demo`, `make install`.
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

demo: setup-tests all
	@tools/demo $(BUILD)

install: all
	@ninja -C $(BUILD) install

clean:
	rm -rf $(BUILD)

.PHONY: all setup setup-tests test demo install clean
