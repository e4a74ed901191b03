"""A ROS 2 node around an exported controller. It was not run: it shows where the parts go.

    ros2 run your_package controller --ros-args -p folder:=/opt/controller

It needs rclpy, NumPy and the exported folder (controller.json, and controller.py on the Python path); no ncp_rl.
Observations come as std_msgs/Float32MultiArray in the order of controller.h, actions leave in the same form. Potentials
are published too, so that any tool shows the neurons.
"""

import rclpy
from controller import Controller, Monitor
from rclpy.node import Node
from std_msgs.msg import Float32MultiArray


class ControllerNode(Node):
    """Acts on each observation, with the seconds that have passed since the one before."""

    def __init__(self) -> None:
        """Load the controller of the parameter `folder`, and its monitor."""
        super().__init__("controller")
        folder = self.declare_parameter("folder", ".").value
        self.controller = Controller.load(folder)
        # A robot needs an action whatever its sensors say; the problem is logged below.
        self.controller.on_bad_input = "hold"
        self.monitor = Monitor.load(f"{folder}/monitor.json")
        self.controller.observers.append(self.monitor)
        self.last = None
        self.actions = self.create_publisher(Float32MultiArray, "action", 1)
        self.neurons = self.create_publisher(Float32MultiArray, "potentials", 1)
        self.create_subscription(Float32MultiArray, "observation", self.on_observation, 1)

    def on_observation(self, message: Float32MultiArray) -> None:
        """One step."""
        now = self.get_clock().now().nanoseconds * 1e-9
        seconds = None if self.last is None else now - self.last
        self.last = now
        action = self.controller.step(message.data, seconds)
        if self.controller.problem:
            self.get_logger().error(f"held: {self.controller.problem}")
        if self.monitor.outside:
            self.get_logger().warning(f"outside known territory: {self.monitor.score:.3g}")
        self.actions.publish(Float32MultiArray(data=[float(x) for x in action.ravel()]))
        self.neurons.publish(Float32MultiArray(data=[float(x) for x in self.controller.potentials]))


def main() -> None:
    """Spin until interrupted."""
    rclpy.init()
    rclpy.spin(ControllerNode())
    rclpy.shutdown()


if __name__ == "__main__":
    main()
