package main

type doctorCmd struct{}

func (c *doctorCmd) Run(g *globals) error { panic("unwritten") }
