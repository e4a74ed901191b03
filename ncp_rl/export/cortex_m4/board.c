/* What QEMU's board mps2-an386 (Cortex-M4F) needs to run harness.c, and a counter of instructions. */
#include <stdint.h>

#define REGISTER(address) (*(volatile uint32_t *)(address))
#define CPACR REGISTER(0xE000ED88u)
#define SYSTICK_CONTROL REGISTER(0xE000E010u)
#define SYSTICK_RELOAD REGISTER(0xE000E014u)
#define SYSTICK_VALUE REGISTER(0xE000E018u)

#define RELOAD 0x00FFFFFFu
/* With `-icount shift=0` an instruction takes 1 ns; the board's clock ticks every 40 ns. */
#define INSTRUCTIONS_PER_TICK 40.0

extern uint32_t stack_top;
extern void _start(void);
void reset_handler(void);
void fault_handler(void);
void harness_begin(void);
double harness_instructions(void);

/* newlib's startup, which sets up files by semihosting, does not switch the floating-point unit on. */
void reset_handler(void)
{
    CPACR |= 0x00F00000u;
    __asm volatile("dsb\n isb\n");
    _start();
}

/* Ends QEMU with status 1, by semihosting's SYS_EXIT. */
void fault_handler(void)
{
    __asm volatile("mov r0, #0x18\n mov r1, #0\n bkpt 0xAB\n");
    for (;;) {
    }
}

void harness_begin(void)
{
    SYSTICK_RELOAD = RELOAD;
    SYSTICK_VALUE = 0u;
    SYSTICK_CONTROL = 5u;
}

double harness_instructions(void)
{
    return (double)(RELOAD - SYSTICK_VALUE) * INSTRUCTIONS_PER_TICK;
}

typedef void (*handler)(void);

__attribute__((section(".vectors"), used)) static const handler VECTORS[16] = {
    (handler)&stack_top, reset_handler, fault_handler, fault_handler, fault_handler, fault_handler, fault_handler,
};
