# Pleiades - the only build file. GNU make 3.81. `make help` lists the targets.
#
#   CUDA=0|1|auto   build the CUDA backend (auto: when nvcc is found)
#   METAL=0|1|auto  build the Metal backend (auto: on macOS)
#   SAN=asan|tsan   sanitizer build (own folder)        V=1  show the commands

.DEFAULT_GOAL := all
UNAME_S := $(shell uname -s)
UNAME_M ?= $(shell uname -m)
CONFIG  := release$(if $(SAN),-$(SAN))$(if $(CROSS),-$(CROSS))
B       := build/$(CONFIG)
Q       := $(if $(V),,@)

CC      ?= cc
ifneq ($(CROSS),)
CC      := $(CROSS)-linux-gnu-gcc
AR      := $(CROSS)-linux-gnu-ar
UNAME_M := $(CROSS)
endif
PKG_CONFIG ?= pkg-config

WARN    := -Wall -Wextra -Wpedantic -Wshadow -Wstrict-prototypes -Wmissing-prototypes
WERROR  ?= 1
# -ffp-contract=off: a result may not depend on which compiler fuses what; where we want fma we write it.
CFLAGS_ALL := -std=c11 -O2 -g -fno-omit-frame-pointer -ffp-contract=off -fno-math-errno -pthread $(WARN) \
              $(if $(filter 1,$(WERROR)),-Werror) -I. -I$(B) -D_GNU_SOURCE -DPLEIADES_BUILD='"$(CONFIG)"'
LDLIBS_ALL := -lm -pthread
ifeq ($(SAN),asan)
CFLAGS_ALL += -fsanitize=address,undefined -fno-sanitize-recover=all
LDFLAGS_ALL += -fsanitize=address,undefined
endif
ifeq ($(SAN),tsan)
CFLAGS_ALL += -fsanitize=thread
LDFLAGS_ALL += -fsanitize=thread
endif

SRC_BASE  := $(wildcard common/base/*.c)
SRC_SYS   := $(wildcard common/sys/*.c)
SRC_MODEL := $(wildcard common/model/*.c)
SRC_KERN  := $(wildcard kernels/*.c) $(wildcard kernels/cpu/*.c)
SRC_NODE  := $(wildcard node/*.c)
SRC_CLI   := $(wildcard cli/*.c)
SRC_LIB   := $(SRC_BASE) $(SRC_SYS) $(SRC_MODEL) $(SRC_KERN) $(SRC_NODE) $(filter-out cli/main.c,$(SRC_CLI))
OBJ_LIB   := $(SRC_LIB:%.c=$(B)/%.o)

# SIMD files: NAME_avx2.c is compiled for AVX2 and so on; which one runs is decided at run time.
ifneq ($(filter x86_64 amd64,$(UNAME_M)),)
$(B)/kernels/cpu/%_avx2.o:   CFLAGS_FILE := -mavx2 -mfma -mf16c -O3
$(B)/kernels/cpu/%_avx512.o: CFLAGS_FILE := -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq \
                                            -mavx512vnni -mavx512vbmi -mavx512bf16 -mavx512bitalg -mavx512vbmi2 -O3
endif
ifneq ($(filter aarch64 arm64,$(UNAME_M)),)
$(B)/kernels/cpu/%_neon.o:   CFLAGS_FILE := $(if $(filter Darwin,$(UNAME_S)),,-march=armv8.2-a+dotprod+fp16) -O3
$(B)/kernels/cpu/%_i8mm.o:   CFLAGS_FILE := -march=armv8.2-a+dotprod+fp16+i8mm -O3
endif

all: $(B)/pleiades

$(B)/%.o: %.c
	@mkdir -p $(@D)
	@echo "  CC    $<"
	$(Q)$(CC) $(CFLAGS_ALL) $(CFLAGS_FILE) $(CFLAGS) -MMD -MP -c $< -o $@

$(B)/libpleiades.a: $(OBJ_LIB)
	@echo "  AR    $@"
	@rm -f $@
	$(Q)$(AR) rcs $@ $^

$(B)/pleiades: $(B)/cli/main.o $(B)/libpleiades.a
	@echo "  LINK  $@"
	$(Q)$(CC) $(LDFLAGS_ALL) $(LDFLAGS) -o $@ $^ $(LDLIBS_ALL) $(LDLIBS)

# ---- tests: each tests/unit/test_NAME.c is one cmocka program ----
TESTS_UNIT := $(patsubst tests/unit/%.c,$(B)/tests/unit/%,$(wildcard tests/unit/test_*.c))

$(B)/tests/unit/%: $(B)/tests/unit/%.o $(B)/libpleiades.a
	@echo "  LINK  $@"
	$(Q)$(CC) $(LDFLAGS_ALL) $(LDFLAGS) -o $@ $^ -lcmocka $(LDLIBS_ALL) $(LDLIBS)

clean:
	rm -rf build

.PHONY: all clean
.SECONDARY:
-include $(OBJ_LIB:.o=.d) $(B)/cli/main.d $(wildcard $(B)/tests/unit/*.d)
