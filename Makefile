# shop: make help lists the targets.
PG_CONFIG ?= pg_config

# The one place that says it.
SHOP_VERSION := $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" shop.control)

# These targets set the machine up or bring their own server, so they must
# work before PostgreSQL's development files are installed.
SCRIPTS_TARGETS = setup check demo replay bench storm rush delivery fuzz coverage analyze ubsan valgrind asan soak format deb dist help

ifneq (,$(filter $(SCRIPTS_TARGETS),$(MAKECMDGOALS)))

export PG_CONFIG DATA STREAMS STOCK POINTS CLIENTS SECONDS ROUNDS COUPONS USERS SUITES HISTORY BLOAT_SECONDS WRITE RESULTS PARTS RATE EVENTS KEYS BATCH HOLD_MINUTES MINUTES SEED QUERIES INTERVAL RECORD

.PHONY: $(SCRIPTS_TARGETS)

help:
	@echo 'make             build the extension'
	@echo '                 WITHOUT_CURL=1, WITHOUT_KAFKA=1: without http(s)://, kafka:// endpoints'
	@echo 'make install     install it into the PostgreSQL of PG_CONFIG'
	@echo 'make installcheck  run the SQL and isolation tests on a running server'
	@echo 'make setup       install the Debian packages that building and testing need'
	@echo 'make demo        run a small shop on a scratch server and show it'
	@echo 'make check       run every test, on a scratch server'
	@echo 'make replay DATA=dir [STREAMS=n] [STOCK=n] [POINTS=n]  place real orders'
	@echo 'make bench [SUITES="order cost …"] [ROUNDS=n] [SECONDS=n] [CLIENTS=n]  measure, beside other ways to do the job'
	@echo 'make storm [MINUTES=n] [SEED=n] [INTERVAL=n] [CLIENTS=n] [FAULTS="…"]  everything at once, with crashes, then the books'
	@echo 'make rush [CLIENTS=n] [COUPONS=n] [USERS=n]  a rush for coupons, checked, then measured'
	@echo 'make delivery [PARTS=list] [EVENTS=n] [ROUNDS=n]  from commit to receiver: latency, backlogs, memory'
	@echo 'make fuzz [MINUTES=n] [SEED=n] [QUERIES=n] [PARTS=list]  bad input of every kind'
	@echo 'make coverage    which lines of src/ the tests run'
	@echo 'make analyze     clang-tidy, cppcheck and gcc -fanalyzer'
	@echo 'make ubsan, make valgrind, make asan  the tests with each of these'
	@echo 'make soak [EVENTS=n]  memory, descriptors and threads over a million orders and events'
	@echo 'make deb         build the Debian package, for the PostgreSQL of the release; it is in ..'
	@echo 'make dist        pack what is committed into shop-$(SHOP_VERSION).zip, for PGXN'
	@echo 'make format      format the C sources with clang-format'

setup:
	@.ci/setup

check:
	@.ci/check

demo:
	@bench/demo

replay:
	@bench/replay

bench:
	@bench/bench

storm:
	@bench/storm

rush:
	@bench/rush

delivery:
	@bench/delivery

fuzz:
	@fuzz/fuzz

coverage:
	@.ci/coverage

analyze:
	@.ci/analyze

ubsan valgrind asan:
	@.ci/sanitize $@

soak:
	@bench/soak

# debian/control is made anew for the majors of the release.
deb:
	@.ci/setup deb
	pg_buildext updatecontrol
	dpkg-buildpackage -b -us -uc -tc

dist:
	git archive --format=zip --prefix=shop-$(SHOP_VERSION)/ -o shop-$(SHOP_VERSION).zip HEAD

format:
	clang-format -i $$(git ls-files 'src/*.c' 'src/*.h')

else

EXTENSION   = shop
MODULE_big  = shop
DATA        = $(sort $(wildcard shop--*.sql))
OBJS        = $(patsubst %.c,%.o,$(sort $(filter-out src/kafka/%,$(wildcard src/*.c src/*/*.c))))
REGRESS     = $(sort $(patsubst sql/%.sql,%,$(wildcard sql/*.sql)))
ISOLATION   = $(sort $(patsubst specs/%.spec,%,$(wildcard specs/*.spec)))
REGRESS_OPTS   = --inputdir=. --encoding=UTF8 --no-locale --load-extension=shop
ISOLATION_OPTS = --inputdir=. --encoding=UTF8 --no-locale --load-extension=shop
PG_CPPFLAGS = -I$(srcdir)/src -DSHOP_VERSION='"$(SHOP_VERSION)"' -isystem $(shell $(PG_CONFIG) --includedir-server)
PG_CFLAGS   = -std=gnu99 -fvisibility=hidden -Wall -Wextra $(EXTRA_CFLAGS)
ifdef WITHOUT_CURL
PG_CPPFLAGS += -DSHOP_WITHOUT_CURL
else
SHLIB_LINK += -lcurl
endif
ifdef WITHOUT_KAFKA
PG_CPPFLAGS += -DSHOP_WITHOUT_KAFKA
else
# A program of its own, because a crash of librdkafka must not be one of the server.
KAFKA_PROGRAM = src/kafka/shop_kafka
endif
EXTRA_CLEAN = src/kafka/shop_kafka output_iso results regression.diffs regression.out

# The work is done by SQL statements; inlining our functions into JIT code
# would gain nothing, so the bitcode is not built.
override with_llvm = no

PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

$(OBJS): $(wildcard src/*.h src/*/*.h)

src/version.o src/sink/http.o: shop.control

ifdef KAFKA_PROGRAM
all: $(KAFKA_PROGRAM)

$(KAFKA_PROGRAM): $(wildcard src/kafka/*.c src/kafka/*.h)
	$(CC) -std=gnu99 -O2 -g -Wall -Wextra $(EXTRA_CFLAGS) -o $@ $(wildcard src/kafka/*.c) -lrdkafka -lpthread

install: install-kafka-program

install-kafka-program: $(KAFKA_PROGRAM)
	$(MKDIR_P) '$(DESTDIR)$(pkglibdir)'
	$(INSTALL_PROGRAM) $< '$(DESTDIR)$(pkglibdir)'

uninstall: uninstall-kafka-program

uninstall-kafka-program:
	rm -f '$(DESTDIR)$(pkglibdir)/shop_kafka'

.PHONY: install-kafka-program uninstall-kafka-program
endif

endif
