"""Commands for GDB on a running Muster: `percpu`, `roll` and `pagewalk`.

`just debug` loads them; so does `source runner/gdb/muster.py`. `help user-defined` lists them.
They only read: the kernel's memory by its debug information, and tables by way of QEMU, which
shows physical memory whatever the tables are.
"""

import contextlib
import re

import gdb

# Bits of control registers (Intel SDM vol. 3, 2.5) and of EFER (2.2.1).
CR0_PG = 1 << 31
CR4_LA57 = 1 << 12
EFER_LMA = 1 << 10

# Bits of a table's entry (Intel SDM vol. 3, 5.5.4), by the names that the monitor's `map` has.
PRESENT, WRITABLE, USER, LARGE, NO_EXECUTE = 1, 1 << 1, 1 << 2, 1 << 7, 1 << 63
WRITE_THROUGH, NO_CACHE = 1 << 3, 1 << 4
FLAGS = [
    (PRESENT, "P"),
    (WRITABLE, "W"),
    (USER, "U"),
    (WRITE_THROUGH, "PWT"),
    (NO_CACHE, "PCD"),
    (1 << 5, "A"),
    (1 << 6, "D"),
    (NO_EXECUTE, "NX"),
]
ADDRESS = 0x000F_FFFF_FFFF_F000

# In an entry that is not present: others may still have it cached (paging/src/tables/entry.rs).
WITHDRAWN = 1 << 9

# The PAT as Limine's protocol and the kernel set it (paging/src/plan.rs).
CACHES = {0: "WB", 3: "UC", 5: "WC"}

# The windows of stacks, the CPUs' own and those that are mapped for some work (src/boot/window.rs).
STACKS = range(0xFFFF_FF00_0000_0000, 0xFFFF_FF40_0000_0000)

SIZES = {1: (12, "4 KiB"), 2: (21, "2 MiB"), 3: (30, "1 GiB")}

# In the place of a workload: the monitor's prompt (src/smp/activity.rs).
PROMPT = 0xFE

# The state of a `OnceCell` that holds its value (the crate conquer-once).
READY = 2


def number(value):
    """The number in a value, whatever it is wrapped in."""
    while value.type.strip_typedefs().code == gdb.TYPE_CODE_STRUCT:
        value = value[value.type.fields()[0]]
    return int(value)


def symbol(name):
    """A static of the kernel's."""
    found = gdb.lookup_static_symbol(name) or gdb.lookup_global_symbol(name)
    if found is None:
        raise gdb.GdbError(f"there is no {name}: load the kernel's symbols, as `just debug` does")
    return found


def static(name):
    """A variable of the kernel's that is there from the beginning."""
    return symbol(name).value()


def variants(name):
    """The names of an enumeration's variants, by their numbers."""
    fields = gdb.lookup_type(name).fields()
    return {field.enumval: field.name.rsplit("::", 1)[-1] for field in fields}


def register(name):
    """A register of the selected thread."""
    frame = gdb.newest_frame()
    value = frame.read_register(name)
    return int(value.cast(frame.architecture().integer_type(64, False)))


@contextlib.contextmanager
def selected(thread):
    """Has a thread selected meanwhile."""
    before = gdb.selected_thread()
    thread.switch()
    try:
        yield
    finally:
        before.switch()


def blocks():
    """Every CPU's block, in order."""
    cell = static("muster::smp::cpu::DIRECTORY")["blocks"]
    if number(cell["state"]) != READY:
        raise gdb.GdbError(
            "no CPU has a block yet: the BSP makes them; `hbreak muster::muster` and `continue`"
            " go to where all have one"
        )
    published = cell["inner"]["value"]["value"]["value"]
    slice = published[published.type.fields()[0]]
    return [slice["data_ptr"][index].dereference() for index in range(int(slice["length"]))]


# The variables that `cpu_local!` declares, by what they are called here.
VARIABLES = {
    "activity": "muster::smp::activity::ACTIVITY",
    "calls": "muster::smp::counters::CALL_COUNTERS",
    "frames": "muster::mm::frames::CACHE",
    "held": "muster::smp::lock::HELD",
    "idle": "muster::smp::lazy_tlb::IDLE",
    "interrupts": "muster::bringup::interrupts::INTERRUPTS",
    "lapic": "muster::smp::cpu::LAPIC_ID",
    "progress": "muster::smp::progress::PROGRESS",
}


def variable(block, name):
    """What a CPU has of a variable: it lies as far from the base as its initial value from address 0."""
    template = symbol(f"{VARIABLES[name]}::__MUSTER_TEMPLATE")
    initial = int(template.value().address)
    section = gdb.execute(f"info symbol {initial:#x}", to_string=True)
    # Local and shared ones lie in a section of their own, and have a base of their own.
    base = int(block["header"]["local" if "muster_percpu_local" in section else "shared"])
    copy = gdb.Value((base + initial) % (1 << 64)).cast(template.type.pointer()).dereference()
    value = copy[copy.type.fields()[0]]["value"]
    # A CachePadded.
    return value["value"] if value.type.name.startswith("crossbeam_utils::") else value


def threads():
    """The thread of each CPU that runs on its block, by the block's address."""
    found = {}
    for thread in gdb.selected_inferior().threads():
        with selected(thread):
            found[register("gs_base")] = thread
    return found


def phase(block):
    """How far a CPU has come, and when, as its journal has it."""
    report = variable(block, "progress")
    reached = number(report["phase"])
    name = variants("muster_events::cpus::Phase")[reached].lower()
    stamp = number(report["stamps"][reached])
    if stamp == 0:
        return name
    ticks = stamp - number(static("muster::arch::clock::ORIGIN"))
    micros = max(ticks, 0) * 1_000_000 // number(static("muster::arch::clock::HZ"))
    return f"{name} at {micros // 1_000_000}.{micros % 1_000_000:06}"


def doing(block):
    """What a CPU is doing, as the monitor's `cpus` has it."""
    activity = variable(block, "activity")
    workload = number(activity["workload"])
    if number(activity["answering"]) > 0:
        words = "answering a call"
    elif workload == PROMPT:
        words = "at its prompt"
    elif number(variable(block, "idle")) != 0:
        words = "idle"
    else:
        words = "at work"
    name = variants("muster_arguments::values::Workload").get(workload)
    return f"{words}, in {name.lower()}" if name else words


def is_online(block):
    names = variants("muster_events::cpus::Phase")
    return names[number(variable(block, "progress")["phase"])] == "Online"


def read_table(phys):
    """The entries of the table at a physical address."""
    # QEMU shows physical memory while this is on (its manual, "GDB usage").
    gdb.execute("maintenance packet Qqemu.PhyMemMode:1", to_string=True)
    try:
        memory = gdb.selected_inferior().read_memory(phys, 4096)
    except gdb.MemoryError:
        raise gdb.GdbError(f"there is no memory for a table at {phys:#x}")
    finally:
        gdb.execute("maintenance packet Qqemu.PhyMemMode:0", to_string=True)
    return memoryview(bytes(memory)).cast("Q")


def walk(virt):
    """The way of an address through the selected thread's tables: a level, its table, the place in
    it, the entry, and where that leads, in words; and the physical address, if there is a page."""
    if not register("cr0") & CR0_PG or not register("efer") & EFER_LMA:
        raise gdb.GdbError("this CPU is not in 64-bit mode yet: it has no such tables")
    levels = 5 if register("cr4") & CR4_LA57 else 4
    beyond = virt >> (9 * levels + 11)
    if beyond not in (0, (1 << (53 - 9 * levels)) - 1):
        raise gdb.GdbError(f"{virt:#x} is not canonical: with {levels}-level tables no CPU takes it")
    table = register("cr3") & ADDRESS
    writable = executable = user = True
    steps = []
    for level in range(levels, 0, -1):
        index = virt >> (9 * level + 3) & 511
        entry = read_table(table)[index]
        writable &= bool(entry & WRITABLE)
        executable &= not entry & NO_EXECUTE
        user &= bool(entry & USER)
        step = (level, table, index, entry)
        if not entry & PRESENT:
            end = ", once all CPUs have flushed it" if entry & WITHDRAWN else ""
            return steps + [(*step, f"nothing{end}")], None
        if level == 1 or entry & LARGE and level in SIZES:
            shift, size = SIZES[level]
            pat_bit = LARGE if level == 1 else 1 << 12
            phys = entry & ADDRESS & -(1 << shift)
            if entry & ADDRESS & ~phys & ~(0 if level == 1 else pat_bit):
                return steps + [(*step, "an error: the CPU rejects it")], None
            place = (
                bool(entry & WRITE_THROUGH) + 2 * bool(entry & NO_CACHE) + 4 * bool(entry & pat_bit)
            )
            cache = CACHES.get(place, f"PAT {place}")
            rights = f"r{'-w'[writable]}{'-x'[executable]}{' user' if user else ''}"
            steps.append((*step, f"{size} page, {rights} {cache}"))
            return steps, phys | virt & ((1 << shift) - 1)
        if entry & LARGE:
            return steps + [(*step, "an error: the CPU rejects it")], None
        table = entry & ADDRESS
        steps.append((*step, f"table {table:#x}"))
    raise AssertionError("the last level has pages")


def stack(pointer):
    """The pages around a stack pointer, from one guard to the other: their bounds."""
    if pointer not in STACKS:
        return None
    steps, phys = walk(pointer)
    if phys is None:
        return None
    _, table, index, *_ = steps[-1]
    entries = read_table(table)
    first = last = index
    while first > 0 and entries[first - 1] & PRESENT:
        first -= 1
    while last < 511 and entries[last + 1] & PRESENT:
        last += 1
    page = pointer & -4096
    return page - (index - first) * 4096, page + (last - index + 1) * 4096


class OfMuster(gdb.Command):
    """A command that knows the kernel."""

    def __init__(self, name, completer=gdb.COMPLETE_NONE):
        super().__init__(name, gdb.COMMAND_USER, completer)

    def invoke(self, argument, from_tty):
        if gdb.selected_thread() is None:
            raise gdb.GdbError("no machine is there: `target remote localhost:1234`")
        try:
            self.answer(argument.strip())
        except gdb.MemoryError as error:
            raise gdb.GdbError(
                f"{error}: the tables of this CPU do not show the kernel; `thread 1` is the BSP's,"
                " whose do from `hbreak *entry` on"
            )


class Roll(OfMuster):
    """Call the roll as of now: a line for each CPU, with its phase.

Usage: roll

The phase is the last that the CPU itself reported, and when. A CPU that stays behind
is where it is: `thread N` and `backtrace` show its code."""

    def answer(self, argument):
        if argument:
            raise gdb.GdbError("roll takes no argument")
        running = threads()
        rows = []
        online = 0
        for block in blocks():
            thread = running.get(int(block.address))
            words = phase(block)
            if is_online(block):
                online += 1
                words += f", {doing(block)}"
            name = thread.num if thread else "-"
            index, lapic = int(block["header"]["index"]), number(variable(block, "lapic"))
            rows.append(f"{index:>3} {lapic:>5} {name:>6} {words}")
        print(f"roll: {online} of {len(rows)} CPUs online")
        print("cpu lapic thread phase")
        for row in rows:
            print(row)


class PerCpu(OfMuster):
    """Show what a CPU has of its own.

Usage: percpu N

Its block and how far it has come; what it is doing, and where; the locks that it holds; its
stack; what it keeps of the heap and of the frames; what it has counted."""

    def answer(self, argument):
        all = blocks()
        wanted = int(argument) if argument.isdecimal() else None
        if wanted is None or wanted >= len(all):
            what = f"there is no CPU {argument}" if argument else "percpu takes a CPU's number"
            raise gdb.GdbError(f"{what}: there are 0 to {len(all) - 1}")
        block = all[wanted]
        address = int(block.address)
        thread = threads().get(address)

        def tell(what, words):
            print(f"  {what:<9} {words}")

        print(f"CPU {wanted}, LAPIC {number(variable(block, 'lapic'))}: {phase(block)}")
        tell("block", f"{address:#x}{'' if thread else ', which no CPU runs on'}")
        if is_online(block):
            tell("doing", doing(block))
        if thread:
            self.tell_place(thread, tell)
        tell("holds", self.locks(block))
        cache = block["head"]
        allocated, freed = number(cache["allocated"]), number(cache["freed"])
        tell("heap", f"{self.cached(cache)} free blocks cached, {allocated} bytes allocated, {freed} freed")
        tell("frames", f"{self.frames(block)} cached")
        calls = variable(block, "calls")
        irqs = self.sum(variable(block, "interrupts"))
        tell(
            "counted",
            f"{irqs} interrupts, {number(calls['sent'])} calls, {number(calls['served'])} answers",
        )

    def tell_place(self, thread, tell):
        with selected(thread):
            instruction, pointer = register("rip"), register("rsp")
            around = stack(pointer)
        place = gdb.execute(f"info symbol {instruction:#x}", to_string=True)
        place = re.sub(r"::h[0-9a-f]{16}\b| in section .*\n|^No symbol.*\n", "", place)
        tell("thread", f"{thread.num}, at {instruction:#x} {place}".rstrip())
        if around:
            bottom, top = around
            words = f"{bottom:#x} to {top:#x}, {top - pointer} bytes in use"
        else:
            words = f"{pointer:#x}, which is none of the kernel's"
        tell("stack", words)

    def locks(self, block):
        counts = number(variable(block, "held")["counts"])
        held = [
            name
            for level, name in sorted(variants("muster::smp::level::Level").items())
            if counts >> (8 * level) & 0xFF
        ]
        return f"locks of {', '.join(held)}" if held else "no lock"

    def cached(self, cache):
        bottoms = static("muster_heap::magazines::cache::BOTTOMS")
        cached = sum(number(block) != 0 for block in self.items(cache["reserve"]))
        for magazine, bottom in zip(self.items(cache["magazines"]), self.items(bottoms)):
            top, end = number(magazine["top"]), number(magazine["end"])
            # One that is closed just now counts as empty, as for the kernel.
            cached += max(top - int(bottom), 0) if top <= end else 0
        return cached

    def frames(self, block):
        frames = variable(block, "frames")
        if number(frames["state"]) == 0:
            return 0
        option = frames["cache"]["value"]
        cache = option[option.type.fields()[-1]]
        cache = cache[cache.type.fields()[0]]
        slot = cache["slot"].dereference()
        return number(slot["singles"]) + number(slot["in_runs"])

    def sum(self, counters):
        return sum(number(count) for count in self.items(counters[counters.type.fields()[0]]))

    def items(self, array):
        first, last = array.type.range()
        return [array[index] for index in range(first, last + 1)]


class PageWalk(OfMuster):
    """Follow an address through the tables of the selected thread's CPU.

Usage: pagewalk ADDRESS

A line for each level: the table and the place in it, the entry and its bits, and where it
leads, with rights and cache type, as the monitor's `map` has it. ADDRESS may be any
expression: `pagewalk $rsp`. It is the tables that CR3 points to, the loader's at first."""

    def __init__(self):
        super().__init__("pagewalk", gdb.COMPLETE_EXPRESSION)

    def answer(self, argument):
        if not argument:
            raise gdb.GdbError("pagewalk takes an address: `pagewalk $rsp`")
        virt = self.address(argument)
        steps, phys = walk(virt)
        for level, table, index, entry, words in steps:
            flags = "".join(f" {name}" for flag, name in FLAGS if entry & flag)
            print(f"{level} {table:#x}[{index}] {entry:#018x}{flags} -> {words}")
        print(f"physical {phys:#x}" if phys is not None else "a CPU that goes there faults")

    def address(self, argument):
        try:
            virt = int(argument, 0)
        except ValueError:
            try:
                value = gdb.parse_and_eval(argument)
                is_number = value.type.strip_typedefs().code in (gdb.TYPE_CODE_INT, gdb.TYPE_CODE_PTR)
                # Of a variable or a function it is where that lies.
                virt = int(value if is_number else value.address or value)
            except gdb.error as error:
                raise gdb.GdbError(f"{argument} is no address: {error}")
        return virt & (1 << 64) - 1


Roll("roll")
PerCpu("percpu")
PageWalk()
