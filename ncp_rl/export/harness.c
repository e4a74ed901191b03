/* Drives controller.c with the steps of a file, for tests and proofs: steps.bin -> outcome.bin, both of float.
 *
 * steps.bin holds for each step: 0 to go on, 1 to reset first, 2 to set the potentials first; the seconds; the
 * observation; potentials. outcome.bin begins with the sizes and the bytes of the policy's SHA-256, and holds for each
 * step: status, action, action means, potentials.
 */
#include "controller.h"

#include <stdio.h>
#include <string.h>

#ifdef HARNESS_COUNT
extern void harness_begin(void);
extern double harness_instructions(void);
#endif

#define N_STEP (2 + CONTROLLER_N_OBSERVATIONS + CONTROLLER_N_NEURONS)
#define N_OUTCOME (1 + CONTROLLER_N_ACTIONS + CONTROLLER_N_OUTPUTS + CONTROLLER_N_NEURONS)

static controller circuit;
static float given[N_STEP];
static float outcome[N_OUTCOME];

int main(void)
{
    const char sha256[] = CONTROLLER_POLICY_SHA256;
    float header[5 + 64];
    FILE *steps = fopen("steps.bin", "rb");
    FILE *outcomes = fopen("outcome.bin", "wb");
    int i;
#ifdef HARNESS_COUNT
    double instructions = 0.0;
    double n_steps = 0.0;
#endif
    if ((steps == NULL) || (outcomes == NULL) || (sizeof sha256 != 65u)) {
        return 1;
    }
    header[0] = (float)CONTROLLER_N_OBSERVATIONS;
    header[1] = (float)CONTROLLER_N_NEURONS;
    header[2] = (float)CONTROLLER_N_OUTPUTS;
    header[3] = (float)CONTROLLER_N_ACTIONS;
    header[4] = (float)sizeof(controller);
    for (i = 0; i < 64; i++) {
        header[5 + i] = (float)sha256[i];
    }
    (void)fwrite(header, sizeof header, 1, outcomes);
    controller_reset(&circuit);
    while (fread(given, sizeof given, 1, steps) == 1u) {
        const float *const observation = &given[2];
        controller_status status;
        if (given[0] > 0.5f) {
            controller_reset(&circuit);
        }
        if (given[0] > 1.5f) {
            (void)memcpy(circuit.potentials, &given[2 + CONTROLLER_N_OBSERVATIONS], sizeof circuit.potentials);
        }
#ifdef HARNESS_COUNT
        harness_begin();
#endif
        status = controller_step(&circuit, observation, given[1], &outcome[1]);
#ifdef HARNESS_COUNT
        instructions += harness_instructions();
        n_steps += 1.0;
#endif
        outcome[0] = (float)status;
        (void)memcpy(&outcome[1 + CONTROLLER_N_ACTIONS], circuit.action_mean, sizeof circuit.action_mean);
        (void)memcpy(
            &outcome[1 + CONTROLLER_N_ACTIONS + CONTROLLER_N_OUTPUTS], circuit.potentials, sizeof circuit.potentials);
        (void)fwrite(outcome, sizeof outcome, 1, outcomes);
    }
    (void)fclose(outcomes);
    (void)fclose(steps);
#ifdef HARNESS_COUNT
    printf("instructions %.0f\n", instructions / n_steps);
#endif
    return 0;
}
