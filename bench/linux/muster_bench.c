// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Linux's kmalloc and alloc_page under the workloads that Muster's heap and
 * frames are measured by: one kthread bound to each CPU, a start line, and a
 * timer that ends the run. Each round does every workload once at each number
 * of CPUs; a figure is the median of its rounds. The figures are JSON, one
 * object a line.
 *
 * The workloads, their sizes, random numbers, ring and hand-over are those of
 * Muster's own benchmark: the two must stay alike.
 */
#include <linux/completion.h>
#include <linux/gfp.h>
#include <linux/hrtimer.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/math64.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include <linux/spinlock.h>
#include <asm/msr.h>

#define ALLOCATOR "linux-6.1"

#define MOST_CPUS 64
#define MOST_ROUNDS 99

#define CHURN_BATCH 64
#define MIXED_BATCH 64
#define LARSON_BATCH 1000
#define LIVE 1000
#define RING_SIZE 4096
#define RING_BATCH 64
#define FRAME_BATCH 64
#define FRAME_BULK 512

/* Instructions are counted over so many pairs, so many times. */
#define COUNTED_PAIRS 4096
#define COUNTED_SAMPLES 101
#define WARM_UP_SAMPLES 20

static unsigned int cpus[8] = { 1, 2, 4, 8 };
static int cpus_given = 4;
module_param_array(cpus, uint, &cpus_given, 0);
MODULE_PARM_DESC(cpus, "numbers of CPUs to measure with (1,2,4,8)");

static unsigned int rounds = 7;
module_param(rounds, uint, 0);
MODULE_PARM_DESC(rounds, "rounds that a figure is the median of (7)");

static unsigned int time = 60;
module_param(time, uint, 0);
MODULE_PARM_DESC(time, "milliseconds of a workload in a round (60)");

static bool instructions;
module_param(instructions, bool, 0);
MODULE_PARM_DESC(instructions,
		 "count TSC ticks per pair on one CPU, which are instructions under QEMU's -icount shift=0");

/* What a worker holds, or leaves for the next one. */
struct set {
	void **blocks;
	unsigned int count;
};

/* Where a worker finds what another left. */
struct slot {
	spinlock_t lock;
	struct set set;
} __aligned(128);

/* Addresses on their way from one CPU to another. */
struct ring {
	void **slots;
	unsigned long tail;
	unsigned long published __aligned(128);
	unsigned long taken __aligned(128);
	bool is_done;
};

struct worker {
	const struct workload *workload;
	struct task_struct *task;
	unsigned int number;
	u64 random;
	struct set live;
	struct page **frames;
	u64 pairs;
	u64 failures;
	/* Stands for a block where only the loop around it is counted. */
	u8 stand_in;
} __aligned(128);

struct workload {
	const char *name;
	void (*prepare)(struct worker *worker);
	/* Both give the number of pairs that they did. */
	unsigned int (*batch)(struct worker *worker);
	unsigned int (*finish)(struct worker *worker);
	/* The batch without its allocations; NULL if it needs two CPUs. */
	unsigned int (*empty_batch)(struct worker *worker);
};

static struct worker workers[MOST_CPUS];
static struct slot slots[MOST_CPUS];
static struct ring rings[MOST_CPUS / 2];

/* One workload at one number of CPUs, once. */
static struct {
	unsigned int cpus;
	atomic_t arrived;
	atomic_t busy;
	bool has_started;
	bool is_over;
	ktime_t start;
	ktime_t end;
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
	return random >> 8;
}

/* Each doubling from 16 bytes to 8 KiB is as likely as any other. */
static __always_inline size_t mixed_size(struct worker *worker)
{
	u64 any = next_random(worker);
	size_t low = 16UL << (any % 9);

	return low + (any >> 8) % low;
}

static __always_inline size_t larson_size(struct worker *worker)
{
	return 16 + next_random(worker) % 1009;
}

static __always_inline void *take_block(struct worker *worker, size_t size,
					bool is_real)
{
	u8 *block = &worker->stand_in;

	/* An allocator behind an interface can't fold a constant size. */
	OPTIMIZER_HIDE_VAR(size);
	OPTIMIZER_HIDE_VAR(block);
	if (is_real)
		block = kmalloc(size, GFP_KERNEL);
	if (unlikely(!block)) {
		worker->failures++;
		return NULL;
	}
	WRITE_ONCE(*block, 1);
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

static void prepare_nothing(struct worker *worker)
{
}

static unsigned int finish_nothing(struct worker *worker)
{
	return 0;
}

/* Churn: one block of 64 bytes, allocated and freed. */

static __always_inline unsigned int churn(struct worker *worker, bool is_real)
{
	unsigned int i;

	for (i = 0; i < CHURN_BATCH; i++)
		give_block(take_block(worker, 64, is_real), is_real);
	return CHURN_BATCH;
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

static __always_inline void replace(struct worker *worker,
				    size_t (*size)(struct worker *worker),
				    bool is_real)
{
	void **place = &worker->live.blocks[next_random(worker) % LIVE];

	give_block(*place, is_real);
	*place = take_block(worker, size(worker), is_real);
}

static void prepare_mixed(struct worker *worker)
{
	struct set *live = &worker->live;

	while (live->count < LIVE)
		live->blocks[live->count++] =
			take_block(worker, mixed_size(worker), true);
}

static __always_inline unsigned int mixed(struct worker *worker, bool is_real)
{
	unsigned int i;

	for (i = 0; i < MIXED_BATCH; i++)
		replace(worker, mixed_size, is_real);
	return MIXED_BATCH;
}

static unsigned int mixed_batch(struct worker *worker)
{
	return mixed(worker, true);
}

static unsigned int empty_mixed_batch(struct worker *worker)
{
	return mixed(worker, false);
}

static void give_set(struct set *set)
{
	while (set->count)
		kfree(set->blocks[--set->count]);
}

static unsigned int finish_live(struct worker *worker)
{
	give_set(&worker->live);
	return 0;
}

/*
 * Larson: 16 to 1024 bytes, 1000 live on each CPU, which the next CPU takes
 * over now and then.
 */

static void fill_larson(struct worker *worker)
{
	struct set *live = &worker->live;

	while (live->count < LIVE)
		live->blocks[live->count++] =
			take_block(worker, larson_size(worker), true);
}

static __always_inline unsigned int larson(struct worker *worker, bool is_real)
{
	struct slot *next = &slots[(worker->number + 1) % run.cpus];
	struct slot *own = &slots[worker->number];
	unsigned int i;

	for (i = 0; i < LARSON_BATCH; i++)
		replace(worker, larson_size, is_real);

	/* Leaves its blocks for the next CPU, and takes what it finds. */
	spin_lock(&next->lock);
	swap(next->set, worker->live);
	spin_unlock(&next->lock);
	spin_lock(&own->lock);
	if (!worker->live.count)
		swap(own->set, worker->live);
	spin_unlock(&own->lock);
	fill_larson(worker);
	return LARSON_BATCH;
}

static unsigned int larson_batch(struct worker *worker)
{
	return larson(worker, true);
}

static unsigned int empty_larson_batch(struct worker *worker)
{
	return larson(worker, false);
}

/* Xfree: CPUs in pairs, one allocates 64 bytes, the other frees. */

static bool is_producer(const struct worker *worker)
{
	return worker->number % 2 == 0;
}

static bool is_full(const struct ring *ring)
{
	unsigned long taken = smp_load_acquire(&ring->taken);

	return ring->tail - taken + 2 * RING_BATCH > RING_SIZE;
}

static unsigned int consume(struct ring *ring)
{
	unsigned long published = smp_load_acquire(&ring->published);
	unsigned long taken = ring->taken;
	unsigned long i;

	for (i = taken; i != published; i++)
		give_block(ring->slots[i % RING_SIZE], true);
	smp_store_release(&ring->taken, published);
	return published - taken;
}

static unsigned int xfree_batch(struct worker *worker)
{
	struct ring *ring = &rings[worker->number / 2];
	unsigned int i, pairs;

	if (!is_producer(worker)) {
		pairs = consume(ring);
		if (!pairs)
			cpu_relax();
		return pairs;
	}
	while (is_full(ring) && !READ_ONCE(run.is_over))
		cpu_relax();
	for (i = 0; i < RING_BATCH; i++)
		ring->slots[ring->tail++ % RING_SIZE] =
			take_block(worker, 64, true);
	smp_store_release(&ring->published, ring->tail);
	return 0;
}

static unsigned int finish_xfree(struct worker *worker)
{
	struct ring *ring = &rings[worker->number / 2];
	unsigned int pairs = 0;

	if (is_producer(worker)) {
		smp_store_release(&ring->is_done, true);
		return 0;
	}
	while (!smp_load_acquire(&ring->is_done)) {
		pairs += consume(ring);
		cpu_relax();
	}
	return pairs + consume(ring);
}

/* Frame pair: one frame, allocated and freed. */

static __always_inline unsigned int frame_pair(struct worker *worker,
					       bool is_real)
{
	unsigned int i;

	for (i = 0; i < FRAME_BATCH; i++)
		give_frame(take_frame(worker, is_real), is_real);
	return FRAME_BATCH;
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

	for (i = 0; i < FRAME_BULK; i++)
		worker->frames[i] = take_frame(worker, is_real);
	for (i = 0; i < FRAME_BULK; i++)
		give_frame(worker->frames[i], is_real);
	return FRAME_BULK;
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
	{ "churn", prepare_nothing, churn_batch, finish_nothing,
	  empty_churn_batch },
	{ "mixed", prepare_mixed, mixed_batch, finish_live,
	  empty_mixed_batch },
	{ "larson", fill_larson, larson_batch, finish_live,
	  empty_larson_batch },
	{ "xfree", prepare_nothing, xfree_batch, finish_xfree, NULL },
	{ "frame-pair", prepare_nothing, frame_pair_batch, finish_nothing,
	  empty_frame_pair_batch },
	{ "frame-bulk", prepare_nothing, frame_bulk_batch, finish_nothing,
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
	run.end = ktime_get();
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
	workload->finish(worker);
	/* The loop alone replaces stand-ins, which nobody frees. */
	worker->live.count = LIVE;
	loop = count_ticks(worker, workload->empty_batch, &pairs);
	worker->live.count = 0;
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
		ring->tail = 0;
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
	for (i = 0; i < count; i++)
		give_set(&slots[i].set);
	return error;
}

static int measure(unsigned int round, unsigned int number, unsigned int column)
{
	unsigned int count = cpus[column], i;
	u64 pairs = 0;
	int error;

	error = run_workers(&workloads[number], count, work);
	if (error)
		return error;
	for (i = 0; i < count; i++) {
		pairs += workers[i].pairs;
		failures[number][column] += workers[i].failures;
	}
	rates[number][column][round] =
		div64_u64(pairs * NSEC_PER_SEC,
			  max_t(s64, ktime_to_ns(ktime_sub(run.end, run.start)), 1));
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

static int take_memory(void)
{
	unsigned int i;

	for (i = 0; i < MOST_CPUS; i++) {
		spin_lock_init(&slots[i].lock);
		slots[i].set.blocks = kvcalloc(LIVE, sizeof(void *), GFP_KERNEL);
		workers[i].live.blocks = kvcalloc(LIVE, sizeof(void *), GFP_KERNEL);
		workers[i].frames = kvcalloc(FRAME_BULK, sizeof(void *), GFP_KERNEL);
		if (!slots[i].set.blocks || !workers[i].live.blocks ||
		    !workers[i].frames)
			return -ENOMEM;
	}
	for (i = 0; i < MOST_CPUS / 2; i++) {
		rings[i].slots = kvcalloc(RING_SIZE, sizeof(void *), GFP_KERNEL);
		if (!rings[i].slots)
			return -ENOMEM;
	}
	return 0;
}

static void give_memory(void)
{
	unsigned int i;

	for (i = 0; i < MOST_CPUS; i++) {
		kvfree(slots[i].set.blocks);
		kvfree(workers[i].live.blocks);
		kvfree(workers[i].frames);
	}
	for (i = 0; i < MOST_CPUS / 2; i++)
		kvfree(rings[i].slots);
}

static int __init muster_bench_init(void)
{
	int error;

	if (!are_parameters_right())
		return -EINVAL;
	init_completion(&run.done);
	hrtimer_init(&run.timer, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED);
	run.timer.function = end_run;
	error = take_memory();
	if (!error)
		error = instructions ? count_all() : measure_all();
	give_memory();
	return error;
}

module_init(muster_bench_init);

MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("Linux's allocators under the workloads of Muster's benchmark");
