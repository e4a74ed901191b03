/* A million steps of random readings, some of them bad: what controller.h promises must hold in each. */
#include "controller.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t state = 88172645463325252u;

static float uniform(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (float)(state >> 40) / 16777216.0f;
}

static float reading(int n_values)
{
    const float draw = uniform();
    if (draw < 0.002f) {
        return NAN;
    }
    if (draw < 0.004f) {
        return (draw < 0.003f) ? INFINITY : -INFINITY;
    }
    if (n_values > 0) {
        return (draw < 0.01f) ? -1.0f : (float)(int)(uniform() * (float)n_values);
    }
    if (draw < 0.02f) {
        return (draw < 0.01f) ? FLT_MAX : -FLT_MAX;
    }
    return (draw < 0.03f) ? 0.0f : 20.0f * (uniform() - 0.5f);
}

int main(int argc, char **argv)
{
    static controller circuit;
    static float observation[CONTROLLER_N_OBSERVATIONS];
    static float action[CONTROLLER_N_ACTIONS];
    long counts[4] = {0, 0, 0, 0};
    const long n_steps = (argc > 1) ? atol(argv[1]) : 1000000;
    const int n_values = (argc > 2) ? atoi(argv[2]) : 0;
    long t;
    int i;
    controller_reset(&circuit);
    for (t = 0; t < n_steps; t++) {
        const int broken = (uniform() < 0.001f) ? 1 : 0;
        controller before;
        float seconds = (uniform() < 0.1f) ? 0.0f : uniform();
        controller_status status;
        int finite = 1;
        if (uniform() < 0.01f) {
            seconds = (uniform() < 0.5f) ? -uniform() - 1e-9f : NAN;
        } else if (uniform() < 0.01f) {
            seconds = FLT_MAX;
        }
        for (i = 0; i < CONTROLLER_N_OBSERVATIONS; i++) {
            observation[i] = reading(n_values);
            finite &= isfinite(observation[i]) ? 1 : 0;
        }
        if (broken == 1) {
            /* As by broken memory. */
            circuit.potentials[t % CONTROLLER_N_NEURONS] = (uniform() < 0.5f) ? NAN : INFINITY;
        }
        before = circuit;
        status = controller_step(&circuit, observation, seconds, action);
        counts[status]++;
        if ((finite == 0) && (status != CONTROLLER_BAD_OBSERVATION)) {
            printf("step %ld: a bad observation gave status %d\n", t, (int)status);
            return 1;
        }
        if ((finite == 1) && !(seconds >= 0.0f) && (status == CONTROLLER_OK)) {
            printf("step %ld: %g s were taken\n", t, (double)seconds);
            return 1;
        }
        if ((status != CONTROLLER_OK) && (memcmp(&before, &circuit, sizeof circuit) != 0)) {
            printf("step %ld: status %d, and the state has changed\n", t, (int)status);
            return 1;
        }
        if ((broken == 1) && (status == CONTROLLER_OK)) {
            printf("step %ld: what is not finite was not noticed\n", t);
            return 1;
        }
        if ((status == CONTROLLER_OUT_OF_RANGE) && (seconds < 1e30f) && (broken == 0)) {
            printf("step %ld: out of range\n", t);
            return 1;
        }
        if (memcmp(action, circuit.action, sizeof action) != 0) {
            printf("step %ld: the action is not the last safe one\n", t);
            return 1;
        }
        for (i = 0; i < CONTROLLER_N_ACTIONS; i++) {
            if (!isfinite(action[i])) {
                printf("step %ld: action %d is %g\n", t, i, (double)action[i]);
                return 1;
            }
        }
        if ((broken == 1) || (uniform() < 0.001f)) {
            controller_reset(&circuit);
        }
    }
    printf("%ld %ld %ld %ld\n", counts[0], counts[1], counts[2], counts[3]);
    return 0;
}
