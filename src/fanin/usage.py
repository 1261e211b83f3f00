"""What a run takes of its machine, once an epoch, under the names that MLflow's page of system metrics knows."""

import psutil
import torch

CHOICES = ("none", "epoch")
MEGABYTE = 1e6


class Usage:
    """Measures since it was made or last asked. `device`: where the run computes."""

    def __init__(self, device: torch.device):
        self.device, self.process = device, psutil.Process()
        self.process.cpu_percent()  # the first call is the beginning of the next one's interval
        psutil.cpu_percent()

    def measure(self) -> dict[str, float]:
        """system/...: the machine's processors and memory, this process's share of them, and of a GPU its memory."""
        memory = psutil.virtual_memory()
        found = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": memory.used / MEGABYTE,
            "system/system_memory_usage_percentage": memory.percent,
            "system/process_cpu_percentage": self.process.cpu_percent(),
            "system/process_memory_megabytes": self.process.memory_info().rss / MEGABYTE,
        }
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            index = self.device.index or 0
            found[f"system/gpu_{index}_memory_usage_megabytes"] = (total - free) / MEGABYTE
            found[f"system/gpu_{index}_memory_usage_percentage"] = 100 * (total - free) / total
        return found
