"""Bird's eye view of a car on its road, drawn with pygame."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pygame

from ncp_envs.lane_keeping import road
from ncp_envs.lane_keeping.drawing import RENDER_FPS
from ncp_envs.lane_keeping.dynamics import (
    CRASH,
    DISTANCE,
    HEADING_ERROR,
    LATERAL_ERROR,
    SPEED,
    STATION,
    STEERING,
)
from ncp_envs.lane_keeping.simulation import Simulation

Floats = npt.NDArray[np.float64]
Color = tuple[int, int, int]

WIDTH, HEIGHT, PIXELS_PER_METRE = 800, 400, 7.0
#: The view is drawn larger by this factor and scaled down, which smooths the edges.
_OVERSAMPLING = 2
#: Metres of road drawn behind and ahead of the car, which is so far from the left edge; metres of trace kept.
_BEHIND, _AHEAD, _CAR_AT, _TRACE = 40, 100, 26.0, 40.0
#: The marks between the lanes: metres of line, in as many from line to line.
_DASH, _PERIOD = 4, 10
#: Metres: of a line, of asphalt beyond the outer lines, length and width of the car, a wheel's.
LINE, SHOULDER = 0.15, 0.4
_CAR, _WHEEL = (4.5, 1.8), (0.7, 0.25)
_AXLES = (1.10, -1.58)

GRASS, ASPHALT, PAINT = (96, 128, 84), (84, 86, 92), (236, 236, 230)
_LANE, _BODY, _GLASS, _TYRE, _TRAIL, _ALARM = (
    (92, 95, 102),
    (66, 133, 244),
    (32, 44, 64),
    (24, 24, 26),
    (255, 196, 64),
    (222, 72, 60),
)


class BirdsEye:
    """Draws one car of a simulation: road and lane, the car, its trace, and its figures."""

    def __init__(self, simulation: Simulation, index: int = 0) -> None:
        """Look at car `index`."""
        self.simulation, self.index = simulation, index
        self._canvas = pygame.Surface((WIDTH * _OVERSAMPLING, HEIGHT * _OVERSAMPLING))
        pygame.font.init()
        self._font = pygame.font.Font(None, 22)
        self._trace: list[tuple[float, float]] = []
        self._window: pygame.Surface | None = None
        self._clock = pygame.time.Clock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the simulation and the index only; canvas, font and window cannot be pickled and are made anew."""
        return type(self), (self.simulation, self.index), dict(_trace=self._trace)

    def remember(self) -> None:
        """Add the car's position to its trace; a car that has just started has no trace."""
        car = self.simulation.cars[:, self.index]
        if self.simulation.steps[self.index] == 0:
            self._trace.clear()
        self._trace.append((float(car[STATION]), float(car[LATERAL_ERROR])))
        self._trace = [point for point in self._trace if point[0] > car[STATION] - _TRACE]

    def frame(self, inset: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        """Return the view as (HEIGHT, WIDTH, 3) uint8, with an image such as a camera's in its corner."""
        return np.ascontiguousarray(pygame.surfarray.array3d(self._draw(inset)).swapaxes(0, 1))

    def show(self, inset: npt.NDArray[np.uint8] | None = None) -> None:
        """Show the view in a window, at the pace of the simulation."""
        if self._window is None:
            pygame.display.init()
            pygame.display.set_caption("Lane keeping")
            self._window = pygame.display.set_mode((WIDTH, HEIGHT))
        self._window.blit(self._draw(inset), (0, 0))
        pygame.event.pump()
        pygame.display.flip()
        self._clock.tick(RENDER_FPS)

    def close(self) -> None:
        """Close the window."""
        if self._window is not None:
            pygame.display.quit()
            self._window = None

    def _draw(self, inset: npt.NDArray[np.uint8] | None) -> pygame.Surface:
        self._canvas.fill(GRASS)
        self._draw_road()
        self._draw_car()
        view = pygame.transform.smoothscale(self._canvas, (WIDTH, HEIGHT))
        self._draw_figures(view)
        if inset is not None:
            image = pygame.surfarray.make_surface(inset.swapaxes(0, 1))
            image = pygame.transform.scale(image, (2 * image.get_width(), 2 * image.get_height()))
            view.blit(image, (WIDTH - image.get_width() - 10, HEIGHT - image.get_height() - 10))
            frame = image.get_rect(bottomright=(WIDTH - 10, HEIGHT - 10))
            pygame.draw.rect(view, PAINT, frame, width=1)
        return view

    def _draw_road(self) -> None:
        stations, line = self._course()
        width = road.at(self.simulation.widths[self.index : self.index + 1], stations[None])[0]
        right, left = -0.5 * width, 0.5 * width
        self._band(ASPHALT, line, right - SHOULDER, left + width + SHOULDER)
        self._band(_LANE, line, right, left)
        for edge in (right, left + width):
            self._band(PAINT, line, edge - 0.5 * LINE, edge + 0.5 * LINE)
        for start in range(len(stations) - _DASH):
            if int(stations[start]) % _PERIOD == 0:
                part = slice(start, start + _DASH + 1)
                self._band(PAINT, line[part], left[part] - 0.5 * LINE, left[part] + 0.5 * LINE)
        if len(self._trace) > 1:
            at, errors = np.array(self._trace).T
            points = [np.interp(at, stations, line[:, k]) for k in range(3)]
            trail = self._pixels(_beside(np.stack(points, axis=1), errors))
            pygame.draw.lines(self._canvas, _TRAIL, False, trail.tolist(), width=2 * _OVERSAMPLING)

    def _course(self) -> tuple[Floats, Floats]:
        """Stations, and x, y and heading of the centreline there, seen from the point beside the car."""
        simulation, i = self.simulation, slice(self.index, self.index + 1)
        station = float(simulation.cars[STATION, self.index])
        stations = np.arange(np.floor(station) - _BEHIND, station + _AHEAD)
        x, y, heading = road.course(simulation.curvatures[i], simulation.headings[i], stations[None])
        line = np.stack([x[0], y[0], heading[0]], axis=1)
        here = np.array([np.interp(station, stations, line[:, k]) for k in range(3)])
        sin, cos = np.sin(here[2]), np.cos(here[2])
        line = line - here
        line[:, :2] = line[:, :2] @ np.array([[cos, -sin], [sin, cos]])
        return stations, line

    def _band(self, color: Color, line: Floats, right: Floats, left: Floats) -> None:
        outline = np.concatenate([_beside(line, right), _beside(line, left)[::-1]])
        pygame.draw.polygon(self._canvas, color, self._pixels(outline).tolist())

    def _draw_car(self) -> None:
        car = self.simulation.cars[:, self.index]
        at, heading = np.array([0.0, car[LATERAL_ERROR]]), float(car[HEADING_ERROR])
        for axle in _AXLES:
            turned = float(car[STEERING]) if axle > 0 else 0.0
            for side in (-0.75, 0.75):
                self._box(_TYRE, at, heading, (axle, side), _WHEEL, turned)
        crash = self.simulation.outcome[CRASH, self.index] != 0.0
        self._box(_ALARM if crash else _BODY, at, heading, (-0.2, 0.0), _CAR)
        self._box(_GLASS, at, heading, (0.65, 0.0), (0.7, 1.5))
        self._box(_GLASS, at, heading, (-1.65, 0.0), (0.5, 1.4))

    def _box(
        self,
        color: Color,
        at: Floats,
        heading: float,
        middle: tuple[float, float],
        size: tuple[float, float],
        turned: float = 0.0,
    ) -> None:
        corners = 0.5 * np.array(size) * np.array([(1, 1), (1, -1), (-1, -1), (-1, 1)])
        outline = at + _turn(np.array(middle) + _turn(corners, turned), heading)
        pygame.draw.polygon(self._canvas, color, self._pixels(outline).tolist())

    def _pixels(self, points: Floats) -> Floats:
        """Convert (P, 2) metres, x ahead and y to the left of the point beside the car, to pixels of the canvas."""
        scale = PIXELS_PER_METRE * _OVERSAMPLING
        return np.stack([(points[:, 0] + _CAR_AT) * scale, 0.5 * HEIGHT * _OVERSAMPLING - points[:, 1] * scale], axis=1)

    def _draw_figures(self, view: pygame.Surface) -> None:
        car, outcome = self.simulation.cars[:, self.index], self.simulation.outcome[:, self.index]
        text = (
            f"{car[SPEED]:4.1f} m/s    lateral error {car[LATERAL_ERROR]:+5.2f} m    "
            f"steering {np.degrees(car[STEERING]):+5.1f} deg    {outcome[DISTANCE]:5.0f} m"
        )
        label = self._font.render(text, True, PAINT)
        plate = pygame.Surface((label.get_width() + 20, label.get_height() + 12), pygame.SRCALPHA)
        plate.fill((20, 24, 28, 170))
        view.blit(plate, (10, 10))
        view.blit(label, (20, 16))


def _beside(line: Floats, offset: Floats) -> Floats:
    """Return (P, 2) points `offset` metres (P,) to the left of a line (P, 3) of x, y and heading."""
    normal = np.stack([-np.sin(line[:, 2]), np.cos(line[:, 2])], axis=1)
    beside: Floats = line[:, :2] + offset[:, None] * normal
    return beside


def _turn(points: Floats, angle: float) -> Floats:
    """Return (P, 2) points turned to the left."""
    sin, cos = np.sin(angle), np.cos(angle)
    turned: Floats = points @ np.array([[cos, sin], [-sin, cos]])
    return turned
