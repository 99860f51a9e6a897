// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * The only program of the machine that measures Linux: inserts the module,
 * which is done when that call returns, and tells QEMU how it went. The words
 * after "--" on the kernel's command line are the module's parameters.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/io.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

/* QEMU's isa-debug-exit, as the runner sets it up: status = value << 1 | 1. */
#define DEBUG_EXIT 0xf4
#define PASSED 0x10
#define FAILED 0x11

static void leave(unsigned int value)
{
	tcdrain(STDOUT_FILENO);
	if (ioperm(DEBUG_EXIT, 4, 1) == 0)
		outl(value, DEBUG_EXIT);
	perror("init: cannot reach isa-debug-exit");
}

int main(int count, char **words)
{
	char parameters[512] = "";
	size_t length = 0;
	int module;

	for (int i = 1; i < count; i++) {
		length += snprintf(parameters + length, sizeof(parameters) - length,
				   "%s ", words[i]);
		if (length >= sizeof(parameters)) {
			fprintf(stderr, "init: too many parameters\n");
			leave(FAILED);
			return 1;
		}
	}
	module = open("/muster_bench.ko", O_RDONLY | O_CLOEXEC);
	if (module < 0 || syscall(SYS_finit_module, module, parameters, 0) != 0) {
		fprintf(stderr, "init: muster_bench.ko %s: %s\n", parameters,
			strerror(errno));
		leave(FAILED);
		return 1;
	}
	leave(PASSED);
	return 1;
}
