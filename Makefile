# Pleiades - the only build file. GNU make 3.81. `make help` lists the targets.
#
#   CUDA=0|1|auto   CUDA backend (auto: when nvcc is found; CUDA=0 builds into its own folder)
#   METAL=0|1|auto  Metal backend (auto: on macOS)
#   SAN=asan|tsan   sanitizer build (own folder)     CROSS=aarch64  for arm64 Linux (own folder)
#   WERROR=0        warnings stay warnings           V=1            show the commands

.DEFAULT_GOAL := all
VERSION := 0.1.0
PREFIX  ?= /usr/local
UNAME_S := $(shell uname -s)
UNAME_M ?= $(shell uname -m)
CUDA    ?= auto
METAL   ?= auto
CONFIG  := release$(if $(SAN),-$(SAN))$(if $(CROSS),-$(CROSS))$(if $(filter 0,$(CUDA)),-nocuda)
B       := build/$(CONFIG)
Q       := $(if $(V),,@)

CC         ?= cc
PKG_CONFIG ?= pkg-config
FUZZ_CC    ?= clang

# ---- other machines ----
# Libraries for the cross build come from a small folder of unpacked packages (`make deps-ci` fills it).
ifneq ($(CROSS),)
CC      := $(CROSS)-linux-gnu-gcc
AR      := $(CROSS)-linux-gnu-ar
UNAME_M := $(CROSS)
CROSS_ROOT  := build/root-$(CROSS)
CFLAGS_ALL  := -idirafter $(CROSS_ROOT)/usr/include -idirafter $(CROSS_ROOT)/usr/include/$(CROSS)-linux-gnu
LDFLAGS_ALL := -L$(CROSS_ROOT)/usr/lib/$(CROSS)-linux-gnu \
               -Wl,-rpath-link,$(CROSS_ROOT)/usr/lib/$(CROSS)-linux-gnu:$(CROSS_ROOT)/lib/$(CROSS)-linux-gnu
PKG_CONFIG  := false
endif
ifeq ($(UNAME_S),Darwin)
BREW        := $(shell brew --prefix 2>/dev/null)
CFLAGS_ALL  := $(if $(BREW),-I$(BREW)/include)
LDFLAGS_ALL := $(if $(BREW),-L$(BREW)/lib)
endif

# ---- libraries: one line each, NAME_IN_PKG_CONFIG:WHAT_TO_LINK_WITHOUT_IT ----
LIBRARIES := \
    libzmq:-lzmq \
    libuv:-luv \
    libprotobuf-c:-lprotobuf-c \
    libmicrohttpd:-lmicrohttpd \
    libxxhash:-lxxhash \
    jansson:-ljansson \
    libedit:-ledit \
    libcurl:-lcurl

LIBRARY_NAMES := $(foreach l,$(LIBRARIES),$(firstword $(subst :, ,$(l))))
library_libs   = $(shell $(PKG_CONFIG) --libs $(firstword $(subst :, ,$(1))) 2>/dev/null || echo $(lastword $(subst :, ,$(1))))
LIBRARY_CFLAGS := $(foreach l,$(LIBRARY_NAMES),$(shell $(PKG_CONFIG) --cflags $(l) 2>/dev/null))
LIBRARY_LIBS   := $(foreach l,$(LIBRARIES),$(call library_libs,$(l)))

# ---- compiler ----
WARN    := -Wall -Wextra -Wpedantic -Wshadow -Wstrict-prototypes -Wmissing-prototypes
WERROR  ?= 1
# Sanitizer builds are for finding, not for speed; -O3 with them takes minutes on the SIMD files.
OPT      := $(if $(SAN),-O1,-O2)
OPT_SIMD := $(if $(SAN),-O1,-O3)
# Programs for finding are debugged by line numbers; everything else a debugger wants costs a third of their compile
# time (CFLAGS=-g brings it back).
DEBUG    := $(if $(SAN)$(CROSS),-g1,-g)
# -ffp-contract=off: a result may not depend on which compiler fuses what; where we want fma we write it.
CFLAGS_ALL += -std=c11 $(OPT) $(DEBUG) -fno-omit-frame-pointer -ffp-contract=off -fno-math-errno -pthread $(WARN) \
              $(if $(filter 1,$(WERROR)),-Werror) -I. -I$(B) -D_GNU_SOURCE -DPLEIADES_BUILD='"$(CONFIG)"' $(LIBRARY_CFLAGS)
LDLIBS_ALL := $(LIBRARY_LIBS) -lm -pthread
CC_IS_CLANG := $(findstring clang,$(shell $(CC) --version 2>/dev/null))
ifneq ($(SAN),)
ifeq ($(CC_IS_CLANG),)
# The sanitizers' own code between the lines makes gcc guess wrongly about what is initialised, and keeps clang from
# vectorising loops that ask for it.
CFLAGS_ALL  += -Wno-maybe-uninitialized
else
CFLAGS_ALL  += -Wno-pass-failed
endif
endif
ifeq ($(SAN),asan)
CFLAGS_ALL  += -fsanitize=address,undefined -fno-sanitize-recover=all
LDFLAGS_ALL += -fsanitize=address,undefined
endif
ifeq ($(SAN),tsan)
CFLAGS_ALL  += -fsanitize=thread
LDFLAGS_ALL += -fsanitize=thread
endif

# ---- sources ----
SRC_BASE  := $(wildcard common/base/*.c)
SRC_SYS   := $(wildcard common/sys/*.c)
SRC_MODEL := $(wildcard common/model/*.c)
SRC_KERN  := $(wildcard kernels/*.c) $(wildcard kernels/cpu/*.c)
SRC_WIRE  := $(wildcard common/wire/*.c)
SRC_SHARE := $(wildcard common/share/*.c)
SRC_NODE  := $(wildcard node/*.c)
SRC_COORD := $(wildcard coordinator/*.c)
SRC_SHARD := $(wildcard shard_tool/*.c)
SRC_CLI   := $(wildcard cli/*.c)
SRC_MAIN  := cli/main.c cli/cmd_version.c
SRC_LIB   := $(SRC_BASE) $(SRC_SYS) $(SRC_MODEL) $(SRC_WIRE) $(SRC_SHARE) $(SRC_KERN) $(SRC_NODE) $(SRC_COORD) \
             $(SRC_SHARD) $(filter-out $(SRC_MAIN),$(SRC_CLI))
OBJ_LIB   := $(SRC_LIB:%.c=$(B)/%.o)
OBJ_MAIN  := $(SRC_MAIN:%.c=$(B)/%.o)

# Messages: proto/NAME.proto becomes NAME.pb-c.[ch] in the build folder. Only common/wire/codec* include them.
PROTOC_C  ?= protoc-c
PROTO     := $(wildcard proto/*.proto)
OBJ_PROTO := $(PROTO:%.proto=$(B)/%.pb-c.o)
OBJ_LIB   += $(OBJ_PROTO)

# SIMD files: NAME_avx2.c is compiled for AVX2 and so on; which one runs is decided at run time.
ifneq ($(filter x86_64 amd64,$(UNAME_M)),)
$(B)/kernels/cpu/%_avx2.o:   CFLAGS_FILE := -mavx2 -mfma -mf16c $(OPT_SIMD)
$(B)/kernels/cpu/%_avx512.o: CFLAGS_FILE := -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq \
                                            -mavx512vnni -mavx512vbmi -mavx512bitalg -mavx512vbmi2 -mprefer-vector-width=512 $(OPT_SIMD)
endif
ifneq ($(filter aarch64 arm64,$(UNAME_M)),)
$(B)/kernels/cpu/%_neon.o:   CFLAGS_FILE := $(if $(filter Darwin,$(UNAME_S)),,-march=armv8.2-a+dotprod+fp16) $(OPT_SIMD)
$(B)/kernels/cpu/%_i8mm.o:   CFLAGS_FILE := -march=armv8.2-a+dotprod+fp16+i8mm $(OPT_SIMD)
endif

# ---- CUDA: kernels/cuda/*.cu, runtime linked in, machine code for each generation plus PTX for later ones ----
# An nvcc in PATH may be a link or a script: nvcc itself says where its toolkit is.
NVCC := $(firstword $(wildcard $(shell command -v nvcc 2>/dev/null) /usr/local/cuda/bin/nvcc))
SRC_CUDA :=
ifneq ($(CUDA),0)
ifeq ($(SAN)$(CROSS),)
CUDA_TOP := $(if $(NVCC),$(shell $(NVCC) --dryrun -x cu -c /dev/null -o /dev/null 2>&1 | sed -n 's/^.*[ ]TOP=//p'))
CUDART   := $(if $(NVCC),$(firstword $(wildcard $(addsuffix /libcudart_static.a,$(addprefix $(CUDA_TOP)/,lib64 lib targets/*/lib) /usr/lib/$(UNAME_M)-linux-gnu))))
SRC_CUDA := $(if $(CUDART),$(wildcard kernels/cuda/*.cu))
ifeq ($(CUDA)$(CUDART),1)
$(error CUDA=1, but $(if $(NVCC),$(NVCC) has no libcudart_static.a,nvcc is neither in PATH nor in /usr/local/cuda/bin))
endif
endif
endif
ifneq ($(SRC_CUDA),)
CUDA_KNOWN := $(shell $(NVCC) --list-gpu-arch 2>/dev/null)
CUDA_ARCHS ?= 80 90 100 120
CUDA_USED  := $(foreach a,$(CUDA_ARCHS),$(if $(filter compute_$(a),$(CUDA_KNOWN)),$(a)))
NVCCFLAGS_ALL := -std=c++17 -O3 -lineinfo -fmad=false -I. -I$(B) -DPLEIADES_CUDA=1 -Xcompiler -Wall,-Wextra,-pthread \
                 $(if $(filter 1,$(WERROR)),-Werror all-warnings) \
                 $(foreach a,$(CUDA_USED),-gencode arch=compute_$(a),code=sm_$(a)) \
                 -gencode arch=compute_$(lastword $(CUDA_USED)),code=compute_$(lastword $(CUDA_USED))
CFLAGS_ALL += -DPLEIADES_CUDA=1
OBJ_LIB    += $(SRC_CUDA:%.cu=$(B)/%.cu.o)
LDLIBS_ALL += $(CUDART) -Wl,-Bstatic -lstdc++ -Wl,-Bdynamic -ldl -lrt
endif

# ---- Metal: kernels/metal/*.m ----
SRC_METAL :=
ifneq ($(filter 1 $(if $(filter Darwin,$(UNAME_S)),auto),$(METAL)),)
SRC_METAL := $(wildcard kernels/metal/*.m)
endif
ifneq ($(SRC_METAL),)
CFLAGS_ALL += -DPLEIADES_METAL=1
OBJ_LIB    += $(SRC_METAL:%.m=$(B)/%.m.o)
LDLIBS_ALL += -framework Foundation -framework Metal
endif

# ---- the program ----
all: $(B)/pleiades

# Holds the flags of this folder; a change of them rebuilds what they were for.
$(B)/flags: FORCE
	@mkdir -p $(@D)
	@printf '%s\n' '$(subst ','"'"',$(CC) $(CFLAGS_ALL) $(CFLAGS) $(NVCCFLAGS_ALL))' > $@.tmp
	@cmp -s $@.tmp $@ && rm -f $@.tmp || mv -f $@.tmp $@

$(B)/%.o: %.c $(B)/flags
	@mkdir -p $(@D)
	@echo "  CC    $<"
	$(Q)$(CC) $(CFLAGS_ALL) $(CFLAGS_FILE) $(CFLAGS) -MMD -MP -c $< -o $@

# Generated code is not ours to keep free of warnings.
$(B)/%.pb-c.c $(B)/%.pb-c.h: %.proto
	@mkdir -p $(@D)
	@echo "  PROTO $<"
	$(Q)$(PROTOC_C) -I. --c_out=$(B) $<
$(B)/%.pb-c.o: $(B)/%.pb-c.c $(B)/flags | $(PROTO:%.proto=$(B)/%.pb-c.h)
	@echo "  CC    $<"
	$(Q)$(CC) $(CFLAGS_ALL) $(CFLAGS) -w -MMD -MP -c $< -o $@
$(B)/common/wire/codec_pack.o $(B)/common/wire/codec_unpack.o: | $(PROTO:%.proto=$(B)/%.pb-c.h)

$(B)/%.m.o: %.m $(B)/flags
	@mkdir -p $(@D)
	@echo "  OBJC  $<"
	$(Q)$(CC) $(filter-out -std=c11 -Wstrict-prototypes,$(CFLAGS_ALL)) -fobjc-arc $(CFLAGS) -MMD -MP -c $< -o $@

$(B)/%.cu.o: %.cu $(B)/flags
	@mkdir -p $(@D)
	@echo "  NVCC  $<"
	$(Q)$(NVCC) $(NVCCFLAGS_ALL) $(NVCCFLAGS) -MMD -MP -MF $(@:.o=.d) -c $< -o $@

$(B)/libpleiades.a: $(OBJ_LIB)
	@echo "  AR    $@"
	@rm -f $@
	$(Q)$(AR) rcs $@ $^

$(B)/pleiades: $(OBJ_MAIN) $(B)/libpleiades.a
	@echo "  LINK  $@"
	$(Q)$(CC) $(LDFLAGS_ALL) $(LDFLAGS) -o $@ $^ $(LDLIBS_ALL) $(LDLIBS)

# What `pleiades version` says. Only cmd_version.c includes it, so a new commit relinks one program and no test.
$(B)/build_info.h: FORCE
	@mkdir -p $(@D)
	@{ echo '#define PLEIADES_VERSION "$(VERSION)"'; \
	   echo "#define PLEIADES_COMMIT \"`git describe --always --dirty --abbrev=12 --exclude='*' 2>/dev/null || echo unknown`\""; } > $@.tmp
	@cmp -s $@.tmp $@ && rm -f $@.tmp || mv -f $@.tmp $@
$(B)/cli/cmd_version.o: $(B)/build_info.h

# The web page as arrays.
PAGE := coordinator/page.html coordinator/page.css coordinator/page.js
$(B)/coordinator/page_data.inc: $(PAGE) Makefile
	@mkdir -p $(@D)
	@for file in $(PAGE); do \
	    echo "static const unsigned char page_$${file##*.}[] = {"; \
	    od -An -v -tu1 $$file | sed 's/[0-9][0-9]*/&,/g'; \
	    echo '};'; \
	done > $@.tmp
	@mv -f $@.tmp $@
$(B)/coordinator/page.o: $(B)/coordinator/page_data.inc

# ---- tests: each tests/unit/test_NAME.c is one cmocka program, each tests/fuzz/fuzz_NAME.c one fuzz target ----
TESTS_UNIT := $(patsubst tests/unit/%.c,$(B)/tests/unit/%,$(wildcard tests/unit/test_*.c))
FUZZ_NAMES := $(patsubst tests/fuzz/fuzz_%.c,%,$(wildcard tests/fuzz/fuzz_*.c))
FUZZ_SECONDS ?= 60
RUNNER     := $(B)/tests/harness/runner
TIDY       := $(B)/tests/tidy/tidy

# Unit tests run once for each time they are compiled.
$(B)/tests/unit/%.o: CFLAGS_FILE := -O1

$(B)/tests/unit/%: $(B)/tests/unit/%.o $(B)/libpleiades.a
	@echo "  LINK  $@"
	$(Q)$(CC) $(LDFLAGS_ALL) $(LDFLAGS) -o $@ $^ -lcmocka $(LDLIBS_ALL) $(LDLIBS)

$(RUNNER): $(addprefix $(B)/,tests/harness/runner.o common/base/buf.o common/base/err.o common/sys/clock.o)
	@echo "  LINK  $@"
	$(Q)$(CC) $(LDFLAGS_ALL) $(LDFLAGS) -o $@ $^
$(TIDY): $(addprefix $(B)/,tests/tidy/tidy.o common/base/buf.o common/base/err.o)
	@echo "  LINK  $@"
	$(Q)$(CC) $(LDFLAGS_ALL) $(LDFLAGS) -o $@ $^

# The same target twice: replay.c runs stored inputs with any compiler; libFuzzer looks for new ones.
$(B)/tests/fuzz/replay_%: $(B)/tests/fuzz/fuzz_%.o $(B)/tests/fuzz/replay.o $(B)/libpleiades.a
	@echo "  LINK  $@"
	$(Q)$(CC) $(LDFLAGS_ALL) $(LDFLAGS) -o $@ $^ $(LDLIBS_ALL) $(LDLIBS)
ifneq ($(B),build/fuzz)
build/fuzz/libpleiades.a: FORCE
	$(Q)$(MAKE) --no-print-directory CC=$(FUZZ_CC) B=build/fuzz CUDA=0 SAN=asan WERROR=0 CFLAGS=-fsanitize=fuzzer-no-link $@
build/fuzz/fuzz_%: tests/fuzz/fuzz_%.c build/fuzz/libpleiades.a
	@echo "  FUZZ  $@"
	$(Q)$(FUZZ_CC) $(CFLAGS_ALL) -fsanitize=fuzzer,address,undefined -o $@ $^ $(LDLIBS_ALL)
endif

# The simulation: the cores once more, compiled with the mistakes that it must be able to catch (common/base/plant.h).
SIM      := $(B)/tests/sim/sim
SRC_SIM  := $(wildcard tests/sim/*.c) \
            $(addprefix coordinator/,core.c cluster.c cluster_sources.c survey.c request.c sequence.c scheduler.c pipeline.c launch.c) \
            node/core.c node/core_work.c node/core_experts.c common/wire/peer.c
$(B)/sim/%.o: %.c $(B)/flags
	@mkdir -p $(@D)
	@echo "  CC    $< (simulation)"
	$(Q)$(CC) $(CFLAGS_ALL) $(CFLAGS) -DPLEIADES_PLANTS -MMD -MP -c $< -o $@
$(SIM): $(SRC_SIM:%.c=$(B)/sim/%.o) $(addprefix $(B)/common/base/,trace.o sm.o mark.o pool.o rng.o err.o buf.o utf8.o) \
        $(addprefix $(B)/common/wire/,codec_pack.o codec_unpack.o) $(OBJ_PROTO)
	@mkdir -p $(@D)
	@echo "  LINK  $@"
	$(Q)$(CC) $(LDFLAGS_ALL) $(LDFLAGS) -o $@ $^ $(LDLIBS_ALL) $(LDLIBS)

# tests/bench/bench_NAME.c measures one part alone; `pleiades bench` measures the whole.
BENCHES := $(patsubst tests/bench/%.c,$(B)/tests/bench/%,$(wildcard tests/bench/bench_*.c))
$(B)/tests/bench/%: $(B)/tests/bench/%.o $(B)/libpleiades.a
	@echo "  LINK  $@"
	$(Q)$(CC) $(LDFLAGS_ALL) $(LDFLAGS) -o $@ $^ $(LDLIBS_ALL) $(LDLIBS)

# `pleiades serve` with a script in place of the model, for tests of clients: $(SCRIPTED) --script FILE ...
SCRIPTED := $(B)/tests/tools/scripted-serve
$(SCRIPTED): $(B)/tests/tools/scripted_serve.o $(B)/libpleiades.a
	@echo "  LINK  $@"
	$(Q)$(CC) $(LDFLAGS_ALL) $(LDFLAGS) -o $@ $^ $(LDLIBS_ALL) $(LDLIBS)

tests: $(TESTS_UNIT) $(SCRIPTED)
fuzz-replay: $(FUZZ_NAMES:%=$(B)/tests/fuzz/replay_%)
tools: $(RUNNER) $(TIDY)

# ---- what people type ----
help:
	@echo 'make            build $(B)/pleiades'
	@echo 'make deps       install what the build needs (apt or brew); deps-ci: also what only `make check` uses'
	@echo 'make check      everything that must hold: tests, sanitizers, fuzz corpora, tidy, arm64, integration'
	@echo 'make unit       the unit tests alone, in seconds'
	@echo 'make asan tsan  the unit tests with address + undefined, with thread sanitizer'
	@echo 'make fuzz       every fuzz target for FUZZ_SECONDS=$(FUZZ_SECONDS) (needs clang)'
	@echo 'make sim        1,000 seeds of the cluster simulation (SIM_SEEDS, SIM_FIRST)'
	@echo 'make tidy       include rules, names of dangerous functions, line lengths'
	@echo 'make demo       from nothing to generated text on this machine, with timings'
	@echo 'make bench      speed of this machine; soak: a million seeds of sim, then hours of the same answers'
	@echo 'make install    into PREFIX=$(PREFIX) (DESTDIR is honoured)'
	@echo 'make bundle     dist/pleiades-VERSION-OS-ARCH.tar.gz, runs without installing anything'
	@echo 'make format     breaks lines that are too long; clean: removes build/ and dist/'
	@echo
	@echo 'CUDA=0|1 METAL=0|1 SAN=asan|tsan CROSS=aarch64 WERROR=0 V=1; this build: $(CONFIG), CUDA $(if $(SRC_CUDA),yes,no), Metal $(if $(SRC_METAL),yes,no)'

deps:
	@sh deploy/deps.sh
deps-ci:
	@sh deploy/deps.sh --ci

# STEPS="unit tidy" runs some of it.
check:
	@CUDA='$(CUDA)' METAL='$(METAL)' MAKE_PROGRAM='$(MAKE)' bash tests/run-check.sh $(STEPS)
print-folder:
	@echo $(B)
print-unit-tests:
	@echo $(TESTS_UNIT)
print-fuzz:
	@echo $(FUZZ_NAMES)
# Long tests do less here than in `make check`; PLEIADES_TEST_EFFORT=normal or full asks for more.
unit: $(TESTS_UNIT) $(RUNNER)
	@PLEIADES_TEST_EFFORT=$${PLEIADES_TEST_EFFORT:-quick} $(RUNNER) $(TESTS_UNIT)
asan:
	@$(MAKE) --no-print-directory SAN=asan unit
tsan:
	@$(MAKE) --no-print-directory SAN=tsan unit
fuzz: $(FUZZ_NAMES:%=build/fuzz/fuzz_%)
	@sh tests/fuzz/run.sh $(FUZZ_SECONDS) $(FUZZ_NAMES)
tidy: $(TIDY)
	@$(TIDY) --self-test
	@$(TIDY) .
# A whole cluster in one process; SIM_SEEDS=N SIM_FIRST=N. One seed: $(SIM) --seed N --trace
sim: $(SIM)
	@$(SIM)
bench: all $(BENCHES)
	@bash tests/bench/run.sh $(B)/pleiades
soak: all $(SIM) $(RUNNER) $(B)/tests/unit/test_links
	@bash tests/sim/soak.sh $(SIM)
	@PLEIADES_TEST_EFFORT=full $(RUNNER) -t 1800 $(B)/tests/unit/test_links
	@CLUSTER_REQUESTS=10000 PLEIADES=$(CURDIR)/$(B)/pleiades bash tests/integration/cluster_memory.sh
	@bash tests/soak.sh $(B)/pleiades
demo:
	@CUDA='$(CUDA)' METAL='$(METAL)' MAKE_PROGRAM='$(MAKE)' bash deploy/demo.sh

install: all
	@mkdir -p $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/doc/pleiades
	install -m 755 $(B)/pleiades $(DESTDIR)$(PREFIX)/bin/pleiades
	install -m 644 README.md LICENSE $(DESTDIR)$(PREFIX)/share/doc/pleiades/
bundle: all
	@bash deploy/bundle.sh $(B)/pleiades $(VERSION)

# Breaks lines that are too long and leaves all others alone.
format:
	python3 tests/tidy/wrap.py $(shell git ls-files '*.c' '*.h' '*.inc' '*.cu' '*.cuh' '*.m')
# What deps-ci fetched stays.
clean:
	rm -rf $(filter-out build/root-%,$(wildcard build/*)) dist

FORCE:
.PHONY: all help deps deps-ci tests fuzz-replay tools check unit asan tsan fuzz tidy sim bench soak demo install bundle format \
        clean print-folder print-unit-tests print-fuzz FORCE
.SECONDARY:
-include $(OBJ_LIB:.o=.d) $(OBJ_MAIN:.o=.d) $(wildcard $(B)/tests/*/*.d) $(wildcard $(B)/sim/*/*.d $(B)/sim/*/*/*.d)
