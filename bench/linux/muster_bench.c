// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Linux's kmalloc and alloc_page under the workloads that Muster's heap and
 * frames are measured by: one kthread bound to each CPU, a start line, and a
 * timer that ends the run. Each round does every workload once at each number
 * of CPUs; a figure is the median of its rounds. The figures are JSON, one
 * object a line.
 *
 * The workloads, their sizes, random numbers, ring and baskets, and how pairs
 * a second are reckoned are those of Muster's own benchmark: the two must stay
 * alike.
 */
#include <linux/completion.h>
#include <linux/gfp.h>
#include <linux/hrtimer.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/math64.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include <asm/msr.h>

#define ALLOCATOR "linux-6.1"

#define MOST_CPUS 64
#define MOST_ROUNDS 99

/* Pairs between two looks whether time is up, and blocks that a ring moves. */
#define BATCH 64
/* Blocks that mixed has on each CPU. */
#define MIXED 1000
/* Blocks in each of larson's baskets, of which there are two for each CPU. */
#define BASKET 500
/* Blocks that larson replaces before it goes on to another basket. */
#define TURN 1000
#define RING 4096
/* Frames that go out, then in. */
#define BULK 512

/*
 * Instructions are counted over at least so many pairs, so many times: few
 * enough that most samples have no timer interrupt in them.
 */
#define COUNTED_PAIRS 2048
#define COUNTED_SAMPLES 101
#define WARM_UP_SAMPLES 20

static unsigned int cpus[8] = { 1, 2, 4, 8 };
static int cpus_given = 4;
module_param_array(cpus, uint, &cpus_given, 0);
MODULE_PARM_DESC(cpus, "numbers of CPUs to measure with (1,2,4,8)");

static unsigned int rounds = 5;
module_param(rounds, uint, 0);
MODULE_PARM_DESC(rounds, "rounds that a figure is the median of (5)");

static unsigned int time = 60;
module_param(time, uint, 0);
MODULE_PARM_DESC(time, "milliseconds of a workload in a round (60)");

static bool instructions;
module_param(instructions, bool, 0);
MODULE_PARM_DESC(instructions,
		 "count TSC ticks per pair on one CPU, which are instructions under QEMU's -icount shift=0");

/* Blocks that one CPU leaves and another takes over. */
struct basket {
	struct mutex lock;
	void *blocks[BASKET];
} __aligned(128);

/* Addresses on their way from one CPU to another. */
struct ring {
	void *slots[RING];
	unsigned long published __aligned(128);
	unsigned long taken __aligned(128);
	bool is_done;
};

struct worker {
	const struct workload *workload;
	struct task_struct *task;
	unsigned int number;
	/* The next basket to try. */
	unsigned int basket;
	u64 random;
	u64 pairs;
	u64 failures;
	ktime_t end;
	/* Stands for a block where only the loop around it is counted. */
	unsigned long stand_in;
	void *blocks[MIXED];
	struct page *frames[BULK];
} __aligned(128);

struct workload {
	const char *name;
	void (*prepare)(struct worker *worker);
	/* Gives the number of pairs that it did. */
	unsigned int (*batch)(struct worker *worker);
	/* What must still happen in time; gives pairs too. */
	unsigned int (*finish)(struct worker *worker);
	void (*clean_up)(struct worker *worker);
	/* The batch without its allocations; NULL if it needs two CPUs. */
	unsigned int (*empty_batch)(struct worker *worker);
};

static struct worker workers[MOST_CPUS];
static struct basket baskets[2 * MOST_CPUS];
static struct ring rings[MOST_CPUS / 2];

/* One workload at one number of CPUs, once. */
static struct {
	unsigned int cpus;
	atomic_t arrived;
	atomic_t ended;
	atomic_t busy;
	bool has_started;
	bool is_over;
	ktime_t start;
	struct hrtimer timer;
	struct completion done;
} run;

/* Xorshift (Marsaglia, 2003). */
static __always_inline u64 next_random(struct worker *worker)
{
	u64 random = worker->random;

	random ^= random << 13;
	random ^= random >> 7;
	random ^= random << 17;
	worker->random = random;
	return random;
}

/* A number below end, which is below 2^32 (Lemire's reduction). */
static __always_inline size_t random_below(struct worker *worker, size_t end)
{
	return (next_random(worker) >> 32) * end >> 32;
}

/* 16 bytes to 8 KiB, each octave as likely as any other. */
static __always_inline size_t mixed_size(struct worker *worker)
{
	size_t low = 16UL << random_below(worker, 9);

	return low + random_below(worker, low);
}

static __always_inline size_t larson_size(struct worker *worker)
{
	return 16 + random_below(worker, 1009);
}

static __always_inline void *take_block(struct worker *worker, size_t size,
					bool is_real)
{
	unsigned long *block = &worker->stand_in;

	/* An allocator behind an interface can't fold a constant size. */
	OPTIMIZER_HIDE_VAR(size);
	OPTIMIZER_HIDE_VAR(block);
	if (is_real)
		block = kmalloc(size, GFP_KERNEL);
	if (unlikely(!block)) {
		worker->failures++;
		return NULL;
	}
	WRITE_ONCE(*block, size);
	return block;
}

static __always_inline void give_block(void *block, bool is_real)
{
	OPTIMIZER_HIDE_VAR(block);
	if (is_real)
		kfree(block);
}

static __always_inline struct page *take_frame(struct worker *worker,
					       bool is_real)
{
	struct page *frame = (void *)&worker->stand_in;

	OPTIMIZER_HIDE_VAR(frame);
	if (is_real)
		frame = alloc_page(GFP_KERNEL);
	if (unlikely(!frame))
		worker->failures++;
	return frame;
}

static __always_inline void give_frame(struct page *frame, bool is_real)
{
	OPTIMIZER_HIDE_VAR(frame);
	if (is_real && likely(frame))
		__free_page(frame);
}

/* Allocates the block at a place anew. */
static __always_inline void replace(struct worker *worker, void **place,
				    size_t size, bool is_real)
{
	give_block(*place, is_real);
	*place = take_block(worker, size, is_real);
}

static void give_all(void **blocks, unsigned int count)
{
	unsigned int i;

	for (i = 0; i < count; i++) {
		kfree(blocks[i]);
		blocks[i] = NULL;
	}
}

static void nothing(struct worker *worker)
{
}

static unsigned int no_pairs(struct worker *worker)
{
	return 0;
}

/* Churn: one block of 64 bytes, allocated and freed. */

static __always_inline unsigned int churn(struct worker *worker, bool is_real)
{
	unsigned int i;

	for (i = 0; i < BATCH; i++)
		give_block(take_block(worker, 64, is_real), is_real);
	return BATCH;
}

static unsigned int churn_batch(struct worker *worker)
{
	return churn(worker, true);
}

static unsigned int empty_churn_batch(struct worker *worker)
{
	return churn(worker, false);
}

/* Mixed: 16 bytes to 8 KiB, 1000 live on each CPU, random lifetimes. */

static void prepare_mixed(struct worker *worker)
{
	unsigned int i;

	for (i = 0; i < MIXED; i++)
		worker->blocks[i] = take_block(worker, mixed_size(worker), true);
}

static __always_inline unsigned int mixed(struct worker *worker, bool is_real)
{
	unsigned int i;

	for (i = 0; i < BATCH; i++) {
		void **place = &worker->blocks[random_below(worker, MIXED)];

		replace(worker, place, mixed_size(worker), is_real);
	}
	return BATCH;
}

static unsigned int mixed_batch(struct worker *worker)
{
	return mixed(worker, true);
}

static unsigned int empty_mixed_batch(struct worker *worker)
{
	return mixed(worker, false);
}

static void clean_up_mixed(struct worker *worker)
{
	give_all(worker->blocks, MIXED);
}

/*
 * Larson: 16 to 1024 bytes, 1000 live on each CPU, in baskets of 500; now and
 * then the CPU leaves one to the others and goes on to the next that is free.
 */

static void prepare_larson(struct worker *worker)
{
	unsigned int i, j;

	worker->basket = 2 * worker->number;
	for (i = 0; i < 2; i++) {
		struct basket *own = &baskets[worker->basket + i];

		for (j = 0; j < BASKET; j++)
			own->blocks[j] =
				take_block(worker, larson_size(worker), true);
	}
}

static __always_inline unsigned int larson(struct worker *worker, bool is_real)
{
	struct basket *basket;
	unsigned int i;

	/* There are twice as many baskets as CPUs, so nobody waits for one. */
	do {
		basket = &baskets[worker->basket];
		worker->basket = (worker->basket + 1) % (2 * run.cpus);
	} while (!mutex_trylock(&basket->lock));
	for (i = 0; i < TURN; i++) {
		void **place = &basket->blocks[random_below(worker, BASKET)];

		replace(worker, place, larson_size(worker), is_real);
	}
	mutex_unlock(&basket->lock);
	return TURN;
}

static unsigned int larson_batch(struct worker *worker)
{
	return larson(worker, true);
}

static unsigned int empty_larson_batch(struct worker *worker)
{
	return larson(worker, false);
}

static void clean_up_larson(struct worker *worker)
{
	/* Nobody may be at work on a basket any more. */
	atomic_inc(&run.ended);
	while (atomic_read(&run.ended) < run.cpus) {
		cpu_relax();
		cond_resched();
	}
	give_all(baskets[2 * worker->number].blocks, BASKET);
	give_all(baskets[2 * worker->number + 1].blocks, BASKET);
}

/* Xfree: CPUs in pairs, one allocates 64 bytes, the other frees. */

static bool is_producer(const struct worker *worker)
{
	return worker->number % 2 == 0;
}

static void produce(struct worker *worker, struct ring *ring)
{
	unsigned long taken = smp_load_acquire(&ring->taken);
	unsigned long published = ring->published;
	unsigned int i;

	if (published - taken + BATCH > RING) {
		cpu_relax();
		return;
	}
	for (i = 0; i < BATCH; i++)
		ring->slots[(published + i) % RING] =
			take_block(worker, 64, true);
	smp_store_release(&ring->published, published + BATCH);
}

/* Takes the oldest batch, if there is one. */
static unsigned int consume(struct ring *ring)
{
	unsigned long taken = ring->taken;
	unsigned int i;

	if (smp_load_acquire(&ring->published) == taken) {
		cpu_relax();
		return 0;
	}
	for (i = 0; i < BATCH; i++)
		give_block(ring->slots[(taken + i) % RING], true);
	smp_store_release(&ring->taken, taken + BATCH);
	return BATCH;
}

/* A pair is counted where it is freed. */
static unsigned int xfree_batch(struct worker *worker)
{
	struct ring *ring = &rings[worker->number / 2];

	if (!is_producer(worker))
		return consume(ring);
	produce(worker, ring);
	return 0;
}

static unsigned int finish_xfree(struct worker *worker)
{
	struct ring *ring = &rings[worker->number / 2];
	unsigned int pairs = 0, taken;
	bool is_done;

	if (is_producer(worker)) {
		smp_store_release(&ring->is_done, true);
		return 0;
	}
	do {
		/* In this order: what came before the end is seen. */
		is_done = smp_load_acquire(&ring->is_done);
		taken = consume(ring);
		pairs += taken;
	} while (taken || !is_done);
	return pairs;
}

/* Frame pair: one frame out and in. */

static __always_inline unsigned int frame_pair(struct worker *worker,
					       bool is_real)
{
	unsigned int i;

	for (i = 0; i < BATCH; i++)
		give_frame(take_frame(worker, is_real), is_real);
	return BATCH;
}

static unsigned int frame_pair_batch(struct worker *worker)
{
	return frame_pair(worker, true);
}

static unsigned int empty_frame_pair_batch(struct worker *worker)
{
	return frame_pair(worker, false);
}

/* Frame bulk: 512 frames out, then in. */

static __always_inline unsigned int frame_bulk(struct worker *worker,
					       bool is_real)
{
	unsigned int i;

	for (i = 0; i < BULK; i++)
		worker->frames[i] = take_frame(worker, is_real);
	for (i = 0; i < BULK; i++)
		give_frame(worker->frames[i], is_real);
	return BULK;
}

static unsigned int frame_bulk_batch(struct worker *worker)
{
	return frame_bulk(worker, true);
}

static unsigned int empty_frame_bulk_batch(struct worker *worker)
{
	return frame_bulk(worker, false);
}

static const struct workload workloads[] = {
	{ "churn", nothing, churn_batch, no_pairs, nothing, empty_churn_batch },
	{ "mixed", prepare_mixed, mixed_batch, no_pairs, clean_up_mixed,
	  empty_mixed_batch },
	{ "larson", prepare_larson, larson_batch, no_pairs, clean_up_larson,
	  empty_larson_batch },
	{ "xfree", nothing, xfree_batch, finish_xfree, nothing, NULL },
	{ "frame-pair", nothing, frame_pair_batch, no_pairs, nothing,
	  empty_frame_pair_batch },
	{ "frame-bulk", nothing, frame_bulk_batch, no_pairs, nothing,
	  empty_frame_bulk_batch },
};

static u64 rates[ARRAY_SIZE(workloads)][ARRAY_SIZE(cpus)][MOST_ROUNDS];
static u64 failures[ARRAY_SIZE(workloads)][ARRAY_SIZE(cpus)];

static int by_value(const void *left, const void *right)
{
	u64 a = *(const u64 *)left, b = *(const u64 *)right;

	return a < b ? -1 : a > b;
}

/* The middle one of some figures, which it sorts. */
static u64 median(u64 *figures, unsigned int count)
{
	sort(figures, count, sizeof(*figures), by_value, NULL);
	return figures[count / 2];
}

/* The workers' part. */

static enum hrtimer_restart end_run(struct hrtimer *timer)
{
	WRITE_ONCE(run.is_over, true);
	return HRTIMER_NORESTART;
}

/*
 * The last one to arrive starts the clock: who woke the workers may have no
 * CPU left to run on, and for the same reason a timer's interrupt ends the run.
 */
static void wait_at_start_line(void)
{
	if (atomic_inc_return(&run.arrived) == run.cpus) {
		hrtimer_start(&run.timer, ms_to_ktime(time),
			      HRTIMER_MODE_REL_PINNED);
		run.start = ktime_get();
		smp_store_release(&run.has_started, true);
		return;
	}
	while (!smp_load_acquire(&run.has_started)) {
		cpu_relax();
		cond_resched();
	}
}

static int work(void *data)
{
	struct worker *worker = data;
	const struct workload *workload = worker->workload;
	u64 pairs = 0;

	workload->prepare(worker);
	wait_at_start_line();
	while (!READ_ONCE(run.is_over))
		pairs += workload->batch(worker);
	worker->pairs = pairs + workload->finish(worker);
	worker->end = ktime_get();
	workload->clean_up(worker);
	if (atomic_dec_and_test(&run.busy))
		complete(&run.done);
	return 0;
}

/* The median number of TSC ticks that COUNTED_PAIRS and a few more take. */
static u64 count_ticks(struct worker *worker,
		       unsigned int (*batch)(struct worker *worker), u64 *pairs)
{
	static u64 samples[COUNTED_SAMPLES];
	unsigned int i;

	for (i = 0; i < WARM_UP_SAMPLES + COUNTED_SAMPLES; i++) {
		u64 start = rdtsc();

		for (*pairs = 0; *pairs < COUNTED_PAIRS;)
			*pairs += batch(worker);
		if (i >= WARM_UP_SAMPLES)
			samples[i - WARM_UP_SAMPLES] = rdtsc() - start;
	}
	return median(samples, COUNTED_SAMPLES);
}

static int count_instructions(void *data)
{
	struct worker *worker = data;
	const struct workload *workload = worker->workload;
	u64 pairs, whole, loop, tenths;

	workload->prepare(worker);
	whole = count_ticks(worker, workload->batch, &pairs);
	workload->clean_up(worker);
	loop = count_ticks(worker, workload->empty_batch, &pairs);
	tenths = div64_u64((whole - loop) * 10 + pairs / 2, pairs);
	pr_notice("{\"bench\":\"%s\",\"allocator\":\"" ALLOCATOR
		  "\",\"cpus\":1,\"instructions_per_pair\":%llu.%llu,\"failures\":%llu}\n",
		  workload->name, tenths / 10, tenths % 10, worker->failures);
	if (atomic_dec_and_test(&run.busy))
		complete(&run.done);
	return 0;
}

/* The part of who inserts the module. */

static void reset(const struct workload *workload, unsigned int count)
{
	unsigned int i;

	run.cpus = count;
	atomic_set(&run.arrived, 0);
	atomic_set(&run.ended, 0);
	atomic_set(&run.busy, count);
	run.has_started = false;
	run.is_over = false;
	reinit_completion(&run.done);
	for (i = 0; i < count; i++) {
		struct worker *worker = &workers[i];
		struct ring *ring = &rings[i / 2];

		worker->workload = workload;
		worker->number = i;
		worker->random = (i + 1ULL) * 0x9e3779b97f4a7c15ULL;
		worker->pairs = 0;
		worker->failures = 0;
		ring->published = 0;
		ring->taken = 0;
		ring->is_done = false;
	}
}

/* Lets the first workers, each on its CPU, do something, and waits for them. */
static int run_workers(const struct workload *workload, unsigned int count,
		       int (*act)(void *worker))
{
	unsigned int created, i;
	int error = 0;

	reset(workload, count);
	for (created = 0; created < count; created++) {
		struct task_struct *task;

		task = kthread_create(act, &workers[created], "muster/%u",
				      created);
		if (IS_ERR(task)) {
			error = PTR_ERR(task);
			break;
		}
		kthread_bind(task, created);
		workers[created].task = get_task_struct(task);
	}
	if (!error) {
		for (i = 0; i < count; i++)
			wake_up_process(workers[i].task);
		wait_for_completion(&run.done);
	}
	/* One that was never woken ends without having acted. */
	for (i = 0; i < created; i++) {
		kthread_stop(workers[i].task);
		put_task_struct(workers[i].task);
	}
	return error;
}

static int measure(unsigned int round, unsigned int number, unsigned int column)
{
	unsigned int count = cpus[column], i;
	u64 rate = 0;
	int error;

	error = run_workers(&workloads[number], count, work);
	if (error)
		return error;
	for (i = 0; i < count; i++) {
		struct worker *worker = &workers[i];
		s64 took = ktime_to_ns(ktime_sub(worker->end, run.start));

		rate += div64_u64(worker->pairs * NSEC_PER_SEC,
				  max_t(s64, took, 1));
		failures[number][column] += worker->failures;
	}
	rates[number][column][round] = rate;
	return 0;
}

static bool is_runnable(const struct workload *workload, unsigned int count)
{
	return workload->empty_batch || count % 2 == 0;
}

static void report(unsigned int number, unsigned int column)
{
	u64 rate = median(rates[number][column], rounds);
	/* How long a pair takes the CPU that does it. */
	u64 hundredths = div64_u64(cpus[column] * NSEC_PER_SEC * 100ULL,
				   max_t(u64, rate, 1));

	pr_notice("{\"bench\":\"%s\",\"allocator\":\"" ALLOCATOR
		  "\",\"cpus\":%u,\"pairs_per_s\":%llu,\"ns_per_pair\":%llu.%02llu,\"failures\":%llu}\n",
		  workloads[number].name, cpus[column], rate, hundredths / 100,
		  hundredths % 100, failures[number][column]);
}

static int measure_all(void)
{
	unsigned int round, number, column;
	int error;

	for (round = 0; round < rounds; round++) {
		pr_notice("muster_bench: round %u of %u\n", round + 1, rounds);
		for (column = 0; column < cpus_given; column++) {
			for (number = 0; number < ARRAY_SIZE(workloads); number++) {
				if (!is_runnable(&workloads[number], cpus[column]))
					continue;
				error = measure(round, number, column);
				if (error)
					return error;
			}
		}
	}
	for (number = 0; number < ARRAY_SIZE(workloads); number++)
		for (column = 0; column < cpus_given; column++)
			if (is_runnable(&workloads[number], cpus[column]))
				report(number, column);
	return 0;
}

static int count_all(void)
{
	unsigned int number;
	int error;

	for (number = 0; number < ARRAY_SIZE(workloads); number++) {
		if (!workloads[number].empty_batch)
			continue;
		error = run_workers(&workloads[number], 1, count_instructions);
		if (error)
			return error;
	}
	return 0;
}

static bool are_parameters_right(void)
{
	int i;

	for (i = 0; i < cpus_given; i++) {
		if (!cpus[i] || cpus[i] > MOST_CPUS ||
		    cpus[i] > num_online_cpus()) {
			pr_err("muster_bench: cpus=%u: must be 1 to %u here\n",
			       cpus[i],
			       min_t(unsigned int, num_online_cpus(), MOST_CPUS));
			return false;
		}
	}
	if (!rounds || rounds > MOST_ROUNDS) {
		pr_err("muster_bench: rounds=%u: must be 1 to %u\n", rounds,
		       MOST_ROUNDS);
		return false;
	}
	if (!time) {
		pr_err("muster_bench: time=0: must be 1 or more milliseconds\n");
		return false;
	}
	return true;
}

static int __init muster_bench_init(void)
{
	unsigned int i;

	if (!are_parameters_right())
		return -EINVAL;
	for (i = 0; i < ARRAY_SIZE(baskets); i++)
		mutex_init(&baskets[i].lock);
	init_completion(&run.done);
	hrtimer_init(&run.timer, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED);
	run.timer.function = end_run;
	return instructions ? count_all() : measure_all();
}

module_init(muster_bench_init);

MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("Linux's allocators under the workloads of Muster's benchmark");
