// Every CPU's way into 64-bit mode.
//
// The bootstrap CPU comes in at `pvh_start`, once, on tables that identity-map
// the first 4 GiB. When all is prepared, it goes back to 32-bit mode and takes
// the same way as the others from there: `door` loads the door tables (the
// kernel's, plus the loader's own image at its link address), finds the CPU's
// slot by its APIC id, takes the slot's stack and calls Rust. So all CPUs reach
// the kernel in the same state, and 5-level paging, which can't be switched on
// in 64-bit mode, needs no way of its own.

.set CODE32, 0x18
.set DATA32, 0x20
.set CODE64, 0x28
.set DATA64, 0x30

.set EFER, 0xc0000080
.set EFER_LME_NXE, (1 << 8) | (1 << 11)
.set CR0_PG, 1 << 31
// PG, WP, NE, ET, MP, PE. Caches on: INIT leaves CD and NW set.
.set CR0_VALUE, 0x80010033
.set CR4_PAE, 1 << 5

// Xen's boot protocol PVH: the 32-bit entry point (XEN_ELFNOTE_PHYS32_ENTRY).
// QEMU reads 8 bytes of address from a 64-bit file.
.section .note.Xen, "a", @note
.balign 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad pvh_start

.section .text.entry, "ax", @progbits
.code32
.global pvh_start
// In: flat 32-bit mode, paging off, EBX = hvm_start_info.
pvh_start:
    cli
    cld
    lgdt [boot_gdt_pointer]
    mov esp, offset boot_stack_end
    call check_cpu
    mov eax, offset boot_pml4
    mov ecx, CR4_PAE
    mov ebp, offset load_entry
    jmp enter_long_mode

// A CPU without 64-bit mode or no-execute pages gets its answer here: nothing
// later could give it.
check_cpu:
    push ebx
    mov eax, 0x80000000
    cpuid
    cmp eax, 0x80000001
    jb 2f
    mov eax, 0x80000001
    cpuid
    not edx
    test edx, (1 << 29) | (1 << 20)
    pop ebx
    jnz 2f
    ret
2:  mov esi, offset old_cpu
    mov dx, {COM1}
3:  lodsb
    test al, al
    jz 4f
    out dx, al
    jmp 3b
4:  mov dx, {EXIT_PORT}
    mov eax, {EXIT_CODE}
    out dx, eax
5:  hlt
    jmp 5b

// In: EAX = root table, ECX = CR4, EBP = 64-bit code to go on with.
enter_long_mode:
    mov cr3, eax
    mov cr4, ecx
    mov ecx, EFER
    mov eax, EFER_LME_NXE
    xor edx, edx
    wrmsr
    mov eax, CR0_VALUE
    mov cr0, eax
    .byte 0xea // far jump
    .long long_mode
    .word CODE64

// In: CS = CODE32, paging off, any data segments.
door:
    mov eax, [{DOOR} + {DOOR_ROOT}]
    mov ecx, [{DOOR} + {DOOR_CR4}]
    mov ebp, offset find_slot
    jmp enter_long_mode

.code64
long_mode:
    mov eax, DATA64
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov fs, eax
    mov gs, eax
    mov ebp, ebp
    jmp rbp

load_entry:
    mov edi, ebx
    xor ebp, ebp
    call {LOAD}
    ud2

// The bootstrap CPU's way to the door. Never returns.
.global enter_door
enter_door:
    cli
    push CODE32
    push offset leave_long_mode
    retfq
.code32
leave_long_mode:
    mov eax, cr0
    and eax, ~CR0_PG
    mov cr0, eax
    jmp door

.code64
// The APIC id as x2APIC counts it, if the CPU tells, else the 8-bit one.
find_slot:
    xor eax, eax
    cpuid
    cmp eax, 0xb
    jb 1f
    mov eax, 0xb
    xor ecx, ecx
    cpuid
    test bx, bx
    jnz 2f
1:  mov eax, 1
    cpuid
    shr ebx, 24
    mov edx, ebx
2:  mov rdi, [{DOOR} + {DOOR_SLOTS}]
    mov rcx, [{DOOR} + {DOOR_COUNT}]
3:  test rcx, rcx
    jz 4f
    cmp [rdi + {SLOT_APIC_ID}], edx
    je 5f
    add rdi, {SLOT_SIZE}
    dec rcx
    jmp 3b
    // Nobody asked for this CPU.
4:  hlt
    jmp 4b
5:  mov rsp, [rdi + {SLOT_STACK}]
    xor ebp, ebp
    call {ARRIVE}
    ud2

// Runs at its address in the direct map, the only one both tables have.
// In: RDI = mp_info for the kernel, RSI = stack, RDX = kernel entry,
// RCX = root of the kernel's tables.
.global enter_kernel
enter_kernel:
    mov cr3, rcx
    mov rsp, rsi
    push 0 // the return address of a function that never returns
    mov rax, rdx
    xor ebx, ebx
    xor ecx, ecx
    xor edx, edx
    xor esi, esi
    xor ebp, ebp
    xor r8d, r8d
    xor r9d, r9d
    xor r10d, r10d
    xor r11d, r11d
    xor r12d, r12d
    xor r13d, r13d
    xor r14d, r14d
    xor r15d, r15d
    jmp rax

// The interrupt that ends a parked CPU's sleep. All it has to do is happen.
.global wake
wake:
    iretq

// A non-maskable interrupt stops a parked CPU for good.
.global stop
stop:
    cli
1:  hlt
    jmp 1b

// Copied to a page below 1 MiB; started in real mode at its first byte.
.section .rodata.trampoline, "a", @progbits
.code16
.global trampoline_start
.global trampoline_end
trampoline_start:
    cli
    cld
    mov ax, cs
    mov ds, ax
    lgdtd [GDT_POINTER_OFFSET]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea // far jump, 32-bit offset
    .long door_from_trampoline
    .word CODE32
trampoline_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
.set GDT_POINTER_OFFSET, trampoline_gdt_pointer - trampoline_start
trampoline_end:

.section .text.entry
.code32
// DS still holds a real-mode segment.
door_from_trampoline:
    mov eax, DATA32
    mov ds, eax
    jmp door
.code64

.section .rodata.gdt, "a", @progbits
.balign 8
.global gdt
.global gdt_end
// The Limine protocol fixes these selectors; the 16-bit ones are unused here.
// Accessed bits are set, so that no CPU has to write to the table.
gdt:
    .quad 0
    .quad 0x00009b000000ffff // 0x08: 16-bit code
    .quad 0x000093000000ffff // 0x10: 16-bit data
    .quad 0x00cf9b000000ffff // 0x18: 32-bit code
    .quad 0x00cf93000000ffff // 0x20: 32-bit data
    .quad 0x00209b0000000000 // 0x28: 64-bit code
    .quad 0x0000930000000000 // 0x30: 64-bit data
gdt_end:
boot_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
old_cpu:
    .asciz "loader: this CPU has no 64-bit mode or no NX; use -cpu qemu64 or better\n"

// The boot tables: the first 4 GiB, identity-mapped in 2 MiB pages.
.section .data.boot_tables, "aw", @progbits
.balign 4096
boot_pml4:
    .quad boot_pdpt + 3
    .fill 511, 8, 0
boot_pdpt:
    .quad boot_pd + 0x0003, boot_pd + 0x1003, boot_pd + 0x2003, boot_pd + 0x3003
    .fill 508, 8, 0
boot_pd:
    .set frame, 0
    .rept 2048
    .quad frame + 0x83
    .set frame, frame + 0x200000
    .endr

.section .bss.boot_stack, "aw", @nobits
.balign 16
    .skip 0x40000
boot_stack_end:
.text
